"""Helpers for files: atomic writes, locks, CSV tables, output checks, and retries on full disks."""
