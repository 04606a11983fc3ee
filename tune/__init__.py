"""Hyperparameter search for adadf_dist: search spaces, trials, and selection with significance tests."""
