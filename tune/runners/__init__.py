"""Trial runners: local processes or Ray."""
