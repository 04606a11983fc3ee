"""HTML report of runs, and publication-quality figures. Reads run folders only."""
