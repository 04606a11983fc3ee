"""Command lines: parsing, progress, exit status, and output that tolerates a closed terminal."""
