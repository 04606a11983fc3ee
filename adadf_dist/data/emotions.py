"""The basic emotions under the names and numbers that datasets give them."""

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
    """One spelling for each emotion, in lower case; other names keep their own."""
    name = name.strip().lower()
    return _PLAIN.get(name, name)


def find_class(name: str, classes: Sequence[str]) -> int | None:
    """The place of a class among `classes`: by its exact name, or else as the same emotion; None where unknown."""
    if name in classes:
        return list(classes).index(name)
    return next((label for label, known in enumerate(classes) if plain_name(known) == plain_name(name)), None)


def find_label(name: str, classes: Sequence[str]) -> int | None:
    """As `find_class`; a number is a place among `classes`."""
    name = name.strip()
    if name.isdecimal():  # isdigit() accepts superscripts, which int() does not
        return int(name) if int(name) < len(classes) else None
    return find_class(name, classes)
