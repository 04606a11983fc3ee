"""Loaders, which produce one rank's batches from a split of a dataset."""
