"""Finds duplicate samples between and within splits, and assigns samples to splits without separating duplicates.

Samples are compared by a digest of their content, so only exact copies are found, not near-duplicates.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from adadf_dist.data.build.source import CsvTable
from adadf_dist.data.manifest import SPLITS


class Leak(NamedTuple):
    """A sample of `split` with an exact copy in a split that is used to evaluate models."""

    number: int
    """Sample number of the leaked sample."""
    split: str
    duplicate: int
    """Sample number of its copy in `duplicate_split`."""
    duplicate_split: str


@dataclass(frozen=True)
class DuplicateStats:
    """Counts of exact copies within one split."""

    groups: int
    """Number of groups of identical samples."""
    faces: int
    """Total number of samples in these groups."""
    conflicting_groups: int
    """Number of groups whose samples have different labels."""
    conflicting_faces: int
    """Total number of samples in groups with different labels."""


@dataclass(frozen=True)
class SplitAssignment:
    """Split assigned to each sample, and the duplicates found in the process."""

    splits: Mapping[int, str]
    """Maps each sample number to its split; dropped samples are omitted."""
    leaks: Sequence[Leak]
    duplicates: Mapping[str, DuplicateStats]
    """Maps each split to its duplicate counts."""
    kept_leaks: bool
    """Whether leaked samples were kept instead of dropped."""

    def stats(self) -> dict[str, object]:
        """Return the counts of leaks and duplicates that are stored in `dataset.json`."""
        pairs = Counter(f"{leak.split} face also in {leak.duplicate_split}" for leak in self.leaks)
        return {
            "leaks": dict(sorted(pairs.items())),
            "leaks_dropped": 0 if self.kept_leaks else len(self.leaks),
            "duplicates": {split: asdict(stats) for split, stats in self.duplicates.items()},
        }

    def table(self, locate: Callable[[int], str], labels: Sequence[int], classes: Sequence[str]) -> CsvTable:
        """Return a table with one row per leak, to be written to leaks.csv."""
        header = ("split", "source", "class", "duplicate_split", "duplicate_source", "duplicate_class")
        lines = [
            (
                split,
                locate(number),
                classes[labels[number]],
                duplicate_split,
                locate(duplicate),
                classes[labels[duplicate]],
            )
            for number, split, duplicate, duplicate_split in self.leaks
        ]
        return CsvTable(header, lines)


def digest(data: bytes) -> bytes:
    """Return a 16-byte digest that identifies the content of a sample."""
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

    `splits` maps the number of each sample to be stored to its original split; `digests` and `labels` are indexed by
    sample number and cover all samples.
    """
    leaks = find_leaks(splits, digests)
    dropped = set() if keep_leaks else {leak.number for leak in leaks}
    assigned = {number: split for number, split in splits.items() if number not in dropped}
    train = [number for number, split in assigned.items() if split == "train"]
    assigned |= hold_out_splits(train, digests, labels, fractions, seed)
    numbers = {split: [number for number, own in assigned.items() if own == split] for split in SPLITS}
    duplicates = {split: count_duplicates(own, digests, labels) for split, own in numbers.items() if own}
    return SplitAssignment(assigned, leaks, duplicates, keep_leaks)


def find_leaks(splits: Mapping[int, str], digests: Sequence[bytes]) -> list[Leak]:
    """Find training samples with copies in validation or test, and validation samples with copies in test."""
    leaks: list[Leak] = []
    for group in group_by_digest(splits, digests).values():
        duplicate = max(group, key=lambda number: SPLITS.index(splits[number]))
        leaks += [Leak(n, splits[n], duplicate, splits[duplicate]) for n in group if splits[n] != splits[duplicate]]
    return sorted(leaks)


def hold_out_splits(
    numbers: Sequence[int],
    digests: Sequence[bytes],
    labels: Sequence[int],
    fractions: Mapping[str, float],
    seed: int,
) -> dict[int, str]:
    """Hold out the fraction `fractions[split]` of each class at random; map held-out sample numbers to their splits.

    Duplicates stay together even if their labels differ; a group counts toward the class of its first sample. At least
    one group of each class stays in train. A split may exceed its rounded fraction of a class by the remaining
    duplicates of one group.
    """
    groups = group_by_digest(numbers, digests)
    classes: dict[int, list[list[int]]] = defaultdict(list)
    for content in sorted(groups, key=lambda content: hashlib.blake2b(content, key=str(seed).encode()).digest()):
        classes[labels[groups[content][0]]].append(groups[content])
    held_out: dict[int, str] = {}
    for of_class in classes.values():
        samples = sum(map(len, of_class))
        available = of_class[1:]
        for split, fraction in fractions.items():
            missing = round(fraction * samples)
            while missing > 0 and available:
                copies = available.pop()
                held_out |= dict.fromkeys(copies, split)
                missing -= len(copies)
    return held_out


def count_duplicates(numbers: Sequence[int], digests: Sequence[bytes], labels: Sequence[int]) -> DuplicateStats:
    """Count the exact copies among the samples in `numbers`."""
    groups = [group for group in group_by_digest(numbers, digests).values() if len(group) > 1]
    conflicts = [group for group in groups if len({labels[number] for number in group}) > 1]
    return DuplicateStats(len(groups), sum(map(len, groups)), len(conflicts), sum(map(len, conflicts)))


def group_by_digest(numbers: Iterable[int], digests: Sequence[bytes]) -> dict[bytes, list[int]]:
    groups: dict[bytes, list[int]] = defaultdict(list)
    for number in sorted(numbers):
        groups[digests[number]].append(number)
    return groups
