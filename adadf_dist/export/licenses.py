"""Whose the training faces are: what is known of the data's licence by the builder's source."""

from __future__ import annotations

KNOWN_LICENSES = {
    "affectnet": (
        "AffectNet is given out by its authors under a licence agreement, signed by the head of a laboratory, for "
        "non-commercial research; the agreement decides what may be done with models trained on it"
    ),
    "rafdb": (
        "RAF-DB is given out by its authors on request, for non-commercial research only; its terms forbid commercial "
        "use of any part of the images and of derived data"
    ),
    "sfew": (
        "SFEW (frames of films) is given out by its authors under a licence agreement, for research; the agreement "
        "decides what may be done with models trained on it"
    ),
    "fer2013": (
        "FER2013's pictures were collected by image search for a Kaggle competition, whose rules are what is known of "
        "their terms; the pictures' own rights are their owners'"
    ),
    "synthetic": "drawn faces, made by adadf_dist (Apache-2.0); no person is shown",
}
"""Source in dataset.json -> what is known. Read the terms you agreed to: they count, not this."""


def data_license(source: str, given: str) -> str:
    """What the card says: what the user gave, what is known, or that it is not known."""
    if given:
        return given
    known = KNOWN_LICENSES.get(source)
    return known or "not known: `--data-licence` was not given, and the source of the data has none that is known here"
