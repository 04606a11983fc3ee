"""Benchmarks, which are not installed with the package."""
