"""Render a page as one self-contained HTML file."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup


def render_page(template: Path, **values: object) -> str:
    """Render `template`, which extends base.html; its styles are in a CSS file of the same name. Values are escaped.

    `file("NAME")` in a template inserts a style sheet or script from the template's folder, or this one, unchanged.
    """
    loader = FileSystemLoader([template.parent, Path(__file__).parent])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.globals["file"] = lambda name: Markup(loader.get_source(environment, name)[0])
    return environment.get_template(template.name).render(values, stylesheet=f"{template.stem}.css")
