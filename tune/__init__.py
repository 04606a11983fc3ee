"""Hyperparameter search for adadf_dist: search spaces, trials, and selection of a winner with significance tests."""
