"""Reference labels of a run: its labels before noise was injected, or another dataset's labels of the same photos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adadf_dist.audit.run_data import AuditInputs
from adadf_dist.data.dataset import Dataset, Split, open_dataset
from adadf_dist.data.emotions import find_class
from adadf_dist.errors import UserError

MAX_COMPARED_IMAGES = 100
"""Maximum number of key-matched samples whose images are compared."""


class ReferenceLabels(NamedTuple):
    """Reference labels of S training samples."""

    labels: NDArray[np.int64]
    """[S], each sample's reference label as an index into the run's classes; -1 if unknown."""
    source: str
    """Description of where the labels come from and how many there are, for users."""

    @property
    def known(self) -> NDArray[np.intp]:
        """Indices of the samples with a reference label."""
        return np.flatnonzero(self.labels >= 0)


def injected_noise(material: AuditInputs) -> ReferenceLabels:
    """Return the labels before `data.label_noise_rate` or `data.label_noise_file` changed them."""
    data, faces = material.trained.config.data, material.faces
    kind = f"data.label_noise_rate {data.label_noise_rate:g}" if data.label_noise_rate else "data.label_noise_file"
    changed, total = int((faces.labels != faces.true_labels).sum()), len(faces.labels)
    return ReferenceLabels(
        faces.true_labels, f"{kind}: {changed:,} of {total:,} labels changed ({changed / total:.1%})"
    )


def labels_from_dataset(split: Split, folder: Path) -> ReferenceLabels:
    """Read reference labels from another dataset with the same images, whichever split they are in there.

    Samples are matched by key, or else by image bytes. Samples whose class is missing in the other dataset are
    ignored. Raises `UserError` if no sample matches or the datasets have no class in common.
    """
    other = open_dataset(folder)
    places = [find_class(name, split.classes) for name in other.classes]
    to_ours = [-1 if place is None else place for place in places]
    if not any(ours >= 0 for ours in to_ours):
        raise UserError(
            f"--reference-labels {folder}: its classes {', '.join(other.classes)} include none of the run's, "
            f"{', '.join(split.classes)}; pass a dataset of the same emotions"
        )
    others = [other.split(name) for name in other.splits]
    found, by_key, by_picture = match(split, others)
    if not by_key + by_picture:
        theirs = example_key(other)
        raise UserError(
            f"--reference-labels {folder}: no sample has the same key or image as a sample of the run (example keys: "
            f"{theirs} here, {split.keys[0]} in the run); pass a dataset of the same photos"
        )
    table = np.array([*to_ours, -1])  # the last entry is for unmatched samples, -1
    in_both = np.isin(split.labels, table[table >= 0])
    labels = np.where(in_both, table[found], -1)
    counted = int((labels >= 0).sum())
    wrong = int((labels[labels >= 0] != split.labels[labels >= 0]).sum())
    text = f"labels of {other.name}: {by_key:,} of {len(split):,} samples matched by key, {by_picture:,} by image; "
    same, looked = count_identical_images(split, others)
    text += f"of {looked:,} matched by key, {same:,} have an identical image; of "
    text += f"{counted:,} in common classes, {wrong:,} are labeled differently ({wrong / max(counted, 1):.1%})"
    return ReferenceLabels(labels, text)


def match(split: Split, others: Sequence[Split]) -> tuple[NDArray[np.int64], int, int]:
    """Return [S], each sample's label in the other splits (-1: none), and how many were matched by key and by image.

    If the other splits contain an image several times, it matches only if its labels agree.
    """
    of_key = {str(key): int(label) for other in others for key, label in zip(other.keys, other.labels, strict=True)}
    found = np.array([of_key.get(str(key), -1) for key in split.keys], dtype=np.int64)
    by_key = int((found >= 0).sum())
    rest = np.flatnonzero(found < 0)
    if len(rest):
        of_picture: dict[bytes, int] = {}
        for other in others:
            for label, mark in zip(other.labels.tolist(), digests(other, range(len(other))), strict=True):
                if of_picture.setdefault(mark, label) != label:
                    of_picture[mark] = -1
        found[rest] = [of_picture.get(mark, -1) for mark in digests(split, rest.tolist())]
    return found, by_key, int((found >= 0).sum()) - by_key


def count_identical_images(split: Split, others: Sequence[Split]) -> tuple[int, int]:
    """Return how many key-matched samples have identical images, and how many were compared.

    At most `MAX_COMPARED_IMAGES` are compared. The numbers are reported to the user, because two datasets may use the
    same keys for different images. Differently cropped versions of a photo also count as different.
    """
    place = {str(key): (other, row) for other in others for row, key in enumerate(other.keys)}
    found = [row for row, key in enumerate(split.keys) if str(key) in place][:MAX_COMPARED_IMAGES]
    same = 0
    for row in found:
        other, theirs = place[str(split.keys[row])]
        same += split.read(row) == other.read(theirs)
    return same, len(found)


def digests(split: Split, samples: Sequence[int]) -> Iterator[bytes]:
    return (blake2b(split.read(sample), digest_size=16).digest() for sample in samples)


def example_key(dataset: Dataset) -> str:
    return str(dataset.split(next(iter(dataset.splits))).keys[0])
