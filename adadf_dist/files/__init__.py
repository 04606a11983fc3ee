"""Files: atomic writes, locks, CSV tables, output checks, full disks."""
