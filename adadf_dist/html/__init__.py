"""HTML pages: one base template, shared macros and styles. Each page's template is next to the code that fills it."""
