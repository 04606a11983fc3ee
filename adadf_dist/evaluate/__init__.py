"""Evaluate a trained model on any dataset with its classes: `python -m adadf_dist.evaluate --help`."""
