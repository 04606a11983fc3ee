"""Predict facial expressions in image files, folders, datasets, or paths read from standard input."""
