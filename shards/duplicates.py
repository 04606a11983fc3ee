"""Duplicate samples: leaks between splits, duplicates within a split, and split assignment that keeps them together.

Samples are compared by a digest of their content, so only exact copies are found, not near-duplicates.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from adadf_dist.data.build.source import CsvTable
from adadf_dist.data.manifest import SPLITS


class Leak(NamedTuple):
    """A sample of `split` that is also in a split used to evaluate it."""

    number: int
    split: str
    twin: int
    twin_split: str


@dataclass(frozen=True)
class DuplicateStats:
    """Exact copies within one split."""

    groups: int
    """Number of samples that occur more than once."""
    faces: int
    """Number of copies in these groups, including the first."""
    conflicting_groups: int
    """Groups whose copies have different labels."""
    conflicting_faces: int


@dataclass(frozen=True)
class SplitAssignment:
    """Split of every sample, and the duplicates found on the way."""

    splits: Mapping[int, str]
    """Sample number -> split, for every sample that is kept."""
    leaks: Sequence[Leak]
    twins: Mapping[str, DuplicateStats]
    kept_leaks: bool

    def findings(self) -> dict[str, object]:
        """Return the findings for `dataset.json`."""
        pairs = Counter(f"{leak.split} face also in {leak.twin_split}" for leak in self.leaks)
        return {
            "leaks": dict(sorted(pairs.items())),
            "leaks_dropped": 0 if self.kept_leaks else len(self.leaks),
            "twins": {split: asdict(twins) for split, twins in self.twins.items()},
        }

    def table(self, locate: Callable[[int], str], labels: Sequence[int], classes: Sequence[str]) -> CsvTable:
        """Return the individual leaks, for leaks.csv."""
        header = ("split", "source", "class", "twin_split", "twin_source", "twin_class")
        return CsvTable(
            header,
            [
                (
                    *(leak.split, locate(leak.number), classes[labels[leak.number]]),
                    *(leak.twin_split, locate(leak.twin), classes[labels[leak.twin]]),
                )
                for leak in self.leaks
            ],
        )


def digest(data: bytes) -> bytes:
    """Digest that identifies a sample."""
    return hashlib.blake2b(data, digest_size=16).digest()


def assign_splits(
    splits: Mapping[int, str],
    digests: Sequence[bytes],
    labels: Sequence[int],
    fractions: Mapping[str, float],
    seed: int,
    keep_leaks: bool = False,
) -> SplitAssignment:
    """Drop leaks, hold out the splits in `fractions` from train, and count each split's duplicates.

    `splits` maps the number of every sample to be stored to its original split; `digests` and `labels` cover all
    samples, by number.
    """
    leaks = find_leaks(splits, digests)
    dropped = set() if keep_leaks else {leak.number for leak in leaks}
    kept = {number: split for number, split in splits.items() if number not in dropped}
    train = [number for number, split in kept.items() if split == "train"]
    kept |= hold_out_splits(train, digests, labels, fractions, seed)
    twins = {
        split: count_duplicates([number for number, mine in kept.items() if mine == split], digests, labels)
        for split in SPLITS
        if split in kept.values()
    }
    return SplitAssignment(kept, leaks, twins, keep_leaks)


def find_leaks(splits: Mapping[int, str], digests: Sequence[bytes]) -> list[Leak]:
    """Find training samples also in validation or test, and validation samples also in test."""
    rank = {split: place for place, split in enumerate(SPLITS)}
    latest: dict[bytes, int] = {}
    for number in sorted(splits):
        holder = latest.get(digests[number])
        if holder is None or rank[splits[number]] > rank[splits[holder]]:
            latest[digests[number]] = number
    return [
        Leak(number, splits[number], latest[digests[number]], splits[latest[digests[number]]])
        for number in sorted(splits)
        if splits[number] != splits[latest[digests[number]]]
    ]


def hold_out_splits(
    numbers: Sequence[int],
    digests: Sequence[bytes],
    labels: Sequence[int],
    fractions: Mapping[str, float],
    seed: int,
) -> dict[int, str]:
    """Hold out the fraction `fractions[split]` of each class, sampled with the seed: sample number -> split.

    Duplicates stay together, whatever their labels; a group counts for the class of its first sample. At least one
    group of each class stays in train. A split gets its rounded fraction of the class, plus at most one group's
    duplicates.
    """
    groups = group_by_digest(numbers, digests)
    classes: dict[int, list[bytes]] = defaultdict(list)
    for mark in sorted(groups, key=lambda mark: hashlib.blake2b(mark, key=str(seed).encode()).digest()):
        classes[labels[groups[mark][0]]].append(mark)
    carved: dict[int, str] = {}
    for marks in classes.values():
        faces = sum(len(groups[mark]) for mark in marks)
        free = marks[1:]
        for split, fraction in fractions.items():
            wanted = round(fraction * faces)
            while wanted > 0 and free:
                twins = groups[free.pop()]
                carved |= dict.fromkeys(twins, split)
                wanted -= len(twins)
    return carved


def count_duplicates(numbers: Sequence[int], digests: Sequence[bytes], labels: Sequence[int]) -> DuplicateStats:
    """Count exact copies among the given samples."""
    groups = [twins for twins in group_by_digest(numbers, digests).values() if len(twins) > 1]
    conflicts = [twins for twins in groups if len({labels[number] for number in twins}) > 1]
    return DuplicateStats(len(groups), sum(map(len, groups)), len(conflicts), sum(map(len, conflicts)))


def group_by_digest(numbers: Sequence[int], digests: Sequence[bytes]) -> dict[bytes, list[int]]:
    groups: dict[bytes, list[int]] = defaultdict(list)
    for number in sorted(numbers):
        groups[digests[number]].append(number)
    return groups
