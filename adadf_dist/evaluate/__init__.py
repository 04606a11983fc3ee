"""A trained network measured on any dataset of its classes: `python -m adadf_dist.evaluate --help`."""
