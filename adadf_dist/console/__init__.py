"""Command lines: parsing, progress, exit status, and output that survives a closed terminal."""
