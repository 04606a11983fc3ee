"""Worker processes for loading and building."""
