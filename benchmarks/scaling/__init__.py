"""Scaling over ranks: measured, and modeled from communication volume."""
