"""Predict expressions in images: files, folders, datasets, or paths on standard input."""
