"""Rules that detect problems in a run and suggest fixes."""
