"""Labels that are known to be wrong: put in on purpose, or contradicted by another labelling of the same photos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adadf_dist.config.schema import DataConfig
from adadf_dist.data.dataset import Dataset, Split, open_dataset
from adadf_dist.data.emotions import find_class
from adadf_dist.errors import UserError
from adadf_dist.tracking.artifacts import SampleTable

MAX_COMPARED_IMAGES = 100
"""Faces found by key whose pictures are compared."""


class ReferenceLabels(NamedTuple):
    """Of S training faces."""

    labels: NDArray[np.int64]
    """[S], the true ones in the run's classes; -1 where nothing is known."""
    source: str
    """For people: whose labels these are, and of how many faces."""

    @property
    def known(self) -> NDArray[np.intp]:
        """Numbers of the faces that count."""
        return np.flatnonzero(self.labels >= 0)


def injected_noise(faces: SampleTable, data: DataConfig) -> ReferenceLabels | None:
    """What `data.label_noise` or `data.label_noise_file` put in; None where every label is as the dataset has it."""
    kind = f"data.label_noise {data.label_noise:g}" if data.label_noise else "data.label_noise_file"
    changed = int((faces.labels != faces.true_labels).sum())
    if not changed:
        return None
    share = changed / len(faces.labels)
    return ReferenceLabels(
        faces.true_labels, f"{kind}: {changed:,} of {len(faces.labels):,} labels changed ({share:.1%})"
    )


def labels_from_dataset(split: Split, folder: Path) -> ReferenceLabels:
    """By the labels of another dataset folder that holds the same faces, in whatever split.

    A face is found by its key or else by the bytes of its picture. Faces that one of the two has in a class unknown to
    the other do not count. Raises `UserError` where no face is found, or no class is known to both.
    """
    other = open_dataset(folder)
    places = [find_class(name, split.classes) for name in other.classes]
    to_ours = [-1 if place is None else place for place in places]
    if not any(ours >= 0 for ours in to_ours):
        raise UserError(
            f"--true-labels {folder}: its classes {', '.join(other.classes)} are none of the run's "
            f"{', '.join(split.classes)}; give a dataset that names the same emotions"
        )
    others = [other.split(name) for name in other.splits]
    found, by_key, by_picture = match(split, others)
    if not by_key + by_picture:
        theirs = example_key(other)
        raise UserError(
            f"--true-labels {folder}: shares no face with the run, by key or by picture (a key there is {theirs}, here "
            f"{split.keys[0]}); give shards of the same photos"
        )
    table = np.array([*to_ours, -1])  # its last place is for faces that were not found, -1
    in_both = np.isin(split.labels, table[table >= 0])
    labels = np.where(in_both, table[found], -1)
    counted = int((labels >= 0).sum())
    wrong = int((labels[labels >= 0] != split.labels[labels >= 0]).sum())
    told = f"labels of {other.name}: {by_key:,} of {len(split):,} faces found by key, {by_picture:,} by picture; "
    same, looked = count_identical_images(split, others)
    told += f"of {looked:,} found by key {same:,} have the very same picture; of "
    told += f"{counted:,} in classes that both have, {wrong:,} are labelled otherwise ({wrong / max(counted, 1):.1%})"
    return ReferenceLabels(labels, told)


def match(split: Split, others: Sequence[Split]) -> tuple[NDArray[np.int64], int, int]:
    """[S] labels that the other splits have for our faces, -1 where they have none; found by key, and by picture.

    A picture that stands there more than once counts when its copies agree.
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
    """Of the first `MAX_COMPARED_IMAGES` faces found by key, those whose pictures are the same bytes; and their number.

    Datasets may count their faces alike and hold others: the user should see it. (Cut out otherwise, the same photos
    have other bytes.)
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
