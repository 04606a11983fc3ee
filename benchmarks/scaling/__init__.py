"""Scaling over ranks: measured, and predicted from communication volume."""
