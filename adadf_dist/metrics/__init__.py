"""Classification metrics and statistical comparisons."""
