"""Results of a search: tables, figures and the HTML page."""
