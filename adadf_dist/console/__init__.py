"""Command lines: argument parsing, progress display, exit status, and output that survives a closed terminal."""
