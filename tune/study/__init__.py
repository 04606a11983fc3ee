"""A study: search space, trials, early stopping, selection."""
