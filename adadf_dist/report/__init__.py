"""HTML report about training runs, and publication-quality figures."""
