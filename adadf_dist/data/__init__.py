"""Faces on disk and on their way to the network. Importing this imports neither torch nor any decoder."""
