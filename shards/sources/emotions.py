"""The basic emotions under the names and numbers that published datasets give them."""

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


def find_label(name: str, classes: Sequence[str]) -> int | None:
    """The place among `classes` of an emotion, by number or by any of its names, in any case; None when unknown."""
    name = name.strip().lower()
    if name.isdigit():
        return int(name) if int(name) < len(classes) else None
    for label, known in enumerate(classes):
        names = next(({main, *others} for main, others in SYNONYMS.items() if known in (main, *others)), {known})
        if name in names:
            return label
    return None
