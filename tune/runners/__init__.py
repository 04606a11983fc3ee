"""Runners of trials: local processes or Ray."""
