"""Metrics, logs and per-sample records of a run."""
