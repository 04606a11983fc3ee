"""Configuration keys, their validation, and the merging of presets, files and the command line."""
