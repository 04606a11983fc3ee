"""Metrics, logs and records that a run writes."""
