"""Checkpoints, run folders, and loading of trained models."""
