"""Results of a search: tables, figures, pages."""
