"""How fast, side by side with what one would use instead: `python -m adadf_dist.bench --help`."""
