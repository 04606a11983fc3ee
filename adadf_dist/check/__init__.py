"""Preflight checks: inspect the environment and estimate whether a run would succeed."""
