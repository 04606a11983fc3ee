"""Datasets on disk, loaders and augmentation. Importing this package imports neither torch nor any decoder."""
