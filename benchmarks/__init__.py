"""Measurements of the package on this machine; not installed with it."""
