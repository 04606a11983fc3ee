"""Measure scaling over ranks, and predict it from communication volume."""
