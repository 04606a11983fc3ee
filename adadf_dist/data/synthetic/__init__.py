"""Synthetic faces with known label distributions, for demos and tests."""
