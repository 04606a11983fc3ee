"""Benchmarks; not installed with the package."""
