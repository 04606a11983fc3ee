"""Rules that detect problems of a run and suggest fixes."""
