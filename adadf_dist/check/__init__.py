"""What this environment is and whether a run would go well in it, on one page, before it costs hours."""
