"""Base template, macros and styles that all HTML pages share. Each page has its template next to its own code."""
