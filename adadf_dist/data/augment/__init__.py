"""Augmentation: parameters are sampled first, then applied with Pillow, torch or numba."""
