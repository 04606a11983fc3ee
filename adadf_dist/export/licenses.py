"""Known licenses of datasets, by the source name in `dataset.json`."""

from __future__ import annotations

KNOWN_LICENSES = {
    "affectnet": (
        "AffectNet is distributed by its authors under a license agreement, signed by the head of a laboratory, for "
        "non-commercial research; the agreement governs the use of models trained on it"
    ),
    "rafdb": (
        "RAF-DB is distributed by its authors on request, for non-commercial research only; its terms forbid "
        "commercial use of any part of the images and of derived data"
    ),
    "sfew": (
        "SFEW (frames of films) is distributed by its authors under a license agreement, for research; the agreement "
        "governs the use of models trained on it"
    ),
    "fer2013": (
        "FER2013's images were collected by image search for a Kaggle competition; only the competition's rules are "
        "known as terms, and the rights to the images remain with their owners"
    ),
    "synthetic": "synthetic faces rendered by adadf_dist (Apache-2.0); no real person is shown",
}
"""Source name in `dataset.json` -> license. The terms that you agreed to take precedence."""


def data_license(source: str, given: str) -> str:
    """Return the license text for the model card: `given` if set, else the source's known license or a note."""
    if given:
        return given
    known = KNOWN_LICENSES.get(source)
    return known or "unknown (`--data-license` was not set, and no license is known for this source)"
