"""Augmentation: drawn as data, applied by Pillow, torch or numba."""
