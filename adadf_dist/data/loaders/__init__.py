"""Loaders: batches of one rank from a split of a dataset."""
