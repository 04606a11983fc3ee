"""Augmentation: sampled as data, applied with Pillow, torch or numba."""
