"""Class names that are probably not what their owner meant."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence

from adadf_dist.files.csv_tables import parse_number, parse_whole
from shards.sources.emotions import SYNONYMS

MISSING = ("nan", "null", "none", "n/a", "na", "#n/a", "<na>")
"""What programs write for an empty cell."""


def class_name_warnings(classes: Sequence[str]) -> Iterator[str]:
    """One line for each group of names that may be one class, and one for names that are numbers."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        alike[plain_name(name)].append(name)
    for names in alike.values():
        if len(names) > 1:
            yield f"classes {', '.join(map(repr, names))} look like one; if they are, give them one name"
    for name in classes:
        if name.casefold() in MISSING:
            yield f"class {name!r} looks like a missing label; if it is, fill it in or remove its samples"
        if name != name.strip():
            yield f"class {name!r} has blanks at its ends; other datasets will not call it so"
    numbers = [parse_whole(name) for name in classes]
    if all(math.isfinite(parse_number(name)) for name in classes):
        order = "" if numbers == sorted(numbers, key=lambda n: n or 0) else ", and their order is that of text"
        yield f"classes are called by numbers ({', '.join(classes[:10])}){order}; names would be clearer in reports"


def plain_name(name: str) -> str:
    """A name without letter case, blanks and invisible characters; synonyms of an emotion have the same one."""
    plain = re.sub(r"[\s_\u200b-\u200f\ufeff-]+", "", unicodedata.normalize("NFKC", name).casefold())
    return next((main for main, others in SYNONYMS.items() if plain in (main, *others)), plain)
