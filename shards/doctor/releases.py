"""Class counts of published dataset releases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adadf_dist.data.emotions import plain_name


class Release(NamedTuple):
    """One published release of a dataset."""

    dataset: str
    """Name of the `shards.build` source that reads this release."""
    title: str
    classes: tuple[str, ...]
    """Class names, in the order of the release's label numbers."""
    counts: Mapping[str, tuple[int, ...]]
    """Maps each split, as named by the builder, to its class counts, in the order of `classes`."""


_FER = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
_FER_TRAINING = (3995, 436, 4097, 7215, 4830, 3171, 4965)
_FER_PUBLIC = (467, 56, 496, 895, 653, 415, 607)
_FER_PRIVATE = (491, 55, 528, 879, 594, 416, 626)
_AFFECTNET = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt")
_AFFECTNET_TRAIN = (74874, 134415, 25459, 14090, 6378, 3803, 24882, 3750)

# Class counts as commonly cited. Their sums equal the published totals: FER2013 28,709 / 3,589 / 3,589; RAF-DB 12,271 /
# 3,068; AffectNet 287,651 (283,901 without contempt) / 4,000 or 3,999; SFEW 958 / 436, aligned 891 / 431.
RELEASES: tuple[Release, ...] = (
    Release(
        "fer2013",
        "FER2013 (Kaggle 2013, all three Usages)",
        _FER,
        {"train": _FER_TRAINING, "validation": _FER_PUBLIC, "test": _FER_PRIVATE},
    ),
    Release("fer2013", "FER2013 without PrivateTest", _FER, {"train": _FER_TRAINING, "test": _FER_PUBLIC}),
    Release(
        "rafdb",
        "RAF-DB, basic emotions",
        ("surprise", "fear", "disgust", "happy", "sad", "anger", "neutral"),
        {"train": (1290, 281, 717, 4772, 1982, 705, 2524), "test": (329, 74, 160, 1185, 478, 162, 680)},
    ),
    Release(
        "affectnet",
        "AffectNet, eight expressions (2017)",
        _AFFECTNET,
        {"train": _AFFECTNET_TRAIN, "test": (500,) * 8},
    ),
    Release(
        "affectnet",
        "AffectNet, seven expressions (2017 without contempt)",
        _AFFECTNET[:7],
        {"train": _AFFECTNET_TRAIN[:7], "test": (500,) * 7},
    ),
    Release(
        "affectnet",
        "AffectNet, eight expressions (2021)",
        _AFFECTNET,
        {"train": _AFFECTNET_TRAIN, "test": (*(500,) * 7, 499)},
    ),
    Release(
        "sfew",
        "SFEW 2.0, aligned faces",
        ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise"),
        {"train": (178, 52, 78, 184, 144, 161, 94), "test": (77, 23, 46, 72, 84, 73, 56)},
    ),
    Release(
        "sfew",
        "SFEW 2.0",
        ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise"),
        {"train": (178, 66, 98, 198, 150, 172, 96), "test": (77, 23, 47, 73, 86, 73, 57)},
    ),
)


def align(classes: Sequence[str], release: Release) -> list[int] | None:
    """Return the release's label for each of `classes`, or None if the classes differ.

    If all class names are numbers, their numerical order is assumed to be the release's order.
    """
    if len(classes) == len(release.classes) and all(name.isdigit() for name in classes):
        return [sorted(classes, key=int).index(name) for name in classes]
    known = [plain_name(name) for name in release.classes]
    ours = [plain_name(name) for name in classes]
    return [known.index(name) for name in ours] if sorted(ours) == sorted(known) else None


def expected_counts(release: Release, order: Sequence[int], splits: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Map each split to the published counts per class, in the order of the data's classes.

    If the data has a validation split but the release does not, it was held out from train. The published counts of
    train are then returned as `train + validation`.
    """
    found = {}
    for split, counts in release.counts.items():
        carved = split == "train" and "validation" in splits and "validation" not in release.counts
        found["train + validation" if carved else split] = np.array([counts[label] for label in order], np.int64)
    return found
