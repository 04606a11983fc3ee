"""Warns about class names that are probably mistakes."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence

from adadf_dist.data.emotions import SYNONYMS
from adadf_dist.files.csv_tables import parse_number, parse_whole

MISSING = ("nan", "null", "none", "n/a", "na", "#n/a", "<na>")
"""Texts that other programs write for an empty cell."""


def class_name_warnings(classes: Sequence[str]) -> Iterator[str]:
    """Yield a warning for each suspicious name: a variant of another name, a missing label, extra spaces, a number."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        alike[plain_name(name)].append(name)
    for names in alike.values():
        if len(names) > 1:
            yield f"classes {', '.join(map(repr, names))} may be the same class; if so, use one name"
    for name in classes:
        if name.casefold() in MISSING:
            yield f"class {name!r} looks like a missing label; if so, fill it in or remove its samples"
        if name != name.strip():
            yield f"class {name!r} has leading or trailing spaces, so it will not match the class in other datasets"
    numbers = [parse_whole(name) for name in classes]
    if all(math.isfinite(parse_number(name)) for name in classes):
        order = "" if numbers == sorted(numbers, key=lambda n: n or 0) else ", sorted as text"
        yield f"class names are numbers ({', '.join(classes[:10])}){order}; names would be clearer in reports"


def plain_name(name: str) -> str:
    """Return a name in lowercase without separators and invisible characters; emotion synonyms become the same name."""
    plain = re.sub(r"[\s_\u200b-\u200f\ufeff-]+", "", unicodedata.normalize("NFKC", name).casefold())
    return next((main for main, others in SYNONYMS.items() if plain in (main, *others)), plain)
