"""Checkpoints, run folders, and trained models read back from them."""
