"""Evaluate a trained model on any dataset with the same classes: `python -m adadf_dist.evaluate --help`."""
