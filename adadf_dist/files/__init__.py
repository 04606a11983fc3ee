"""Files: atomic writes, locks, tables, output checks, full disks."""
