"""Names of basic emotions, and lookup of a dataset's classes by name, synonym or number."""

from __future__ import annotations

from collections.abc import Sequence

SYNONYMS = {
    "neutral": ("neutrality",),
    "happy": ("happiness", "joy"),
    "sad": ("sadness",),
    "surprise": ("surprised",),
    "fear": ("fearful", "afraid"),
    "disgust": ("disgusted",),
    "anger": ("angry",),
    "contempt": ("contemptuous",),
}
_PLAIN = {name: main for main, others in SYNONYMS.items() for name in (main, *others)}


def plain_name(name: str) -> str:
    """Return the standard name of an emotion, such as "happy" for "Joy"; other names are only lowercased."""
    name = name.strip().lower()
    return _PLAIN.get(name, name)


def find_class(name: str, classes: Sequence[str]) -> int | None:
    """Return the index of a class in `classes`, by exact name or else by synonym; None if there is none."""
    if name in classes:
        return list(classes).index(name)
    return next((label for label, known in enumerate(classes) if plain_name(known) == plain_name(name)), None)


def find_label(name: str, classes: Sequence[str]) -> int | None:
    """Return the index of a class in `classes`, given its name or the index itself; None if it is unknown."""
    name = name.strip()
    if name.isdecimal():  # isdigit() accepts superscripts, which int() does not
        return int(name) if int(name) < len(classes) else None
    return find_class(name, classes)
