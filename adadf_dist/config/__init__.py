"""Configuration: keys, validation, and the layers that are merged into it."""
