"""Basic emotions: names and numbers used by datasets."""

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
    """Return one lower-case spelling per emotion; other names are returned unchanged."""
    name = name.strip().lower()
    return _PLAIN.get(name, name)


def find_class(name: str, classes: Sequence[str]) -> int | None:
    """Index in `classes` of a class: by exact name, else as the same emotion; None if unknown."""
    if name in classes:
        return list(classes).index(name)
    return next((label for label, known in enumerate(classes) if plain_name(known) == plain_name(name)), None)


def find_label(name: str, classes: Sequence[str]) -> int | None:
    """Like `find_class`, but a number is an index into `classes`."""
    name = name.strip()
    if name.isdecimal():  # isdigit() accepts superscripts, which int() does not
        return int(name) if int(name) < len(classes) else None
    return find_class(name, classes)
