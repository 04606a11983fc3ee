"""Render a template as a self-contained HTML page."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup


def render_page(template: Path, **values: object) -> str:
    """Return the HTML page for `template`, which extends base.html; `values` are HTML-escaped.

    The page's style sheet has the same name as the template, but ends with .css. In a template, `file("NAME")` inserts
    a style sheet or script unchanged, from the template's folder or from this package.
    """
    loader = FileSystemLoader([template.parent, Path(__file__).parent])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.globals["file"] = lambda name: Markup(loader.get_source(environment, name)[0])
    return environment.get_template(template.name).render(values, stylesheet=f"{template.stem}.css")
