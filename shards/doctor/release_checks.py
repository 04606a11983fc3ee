"""Which dataset and release this is, and whether it is whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.doctor.checks import CheckContext
from shards.doctor.finding import Finding, Severity, ok
from shards.doctor.releases import RELEASES, Release, align, expected_counts

MAX_RELEASE_DIFF = 0.25
"""Share of its faces by which data may differ from a release and still be taken for it."""
MINOR_RELEASE_DIFF = 0.02
"""Share of its faces that a copy of a release commonly lacks (damaged files, withdrawn photos)."""


class ReleaseMatch(NamedTuple):
    """The release that the data comes closest to."""

    release: Release
    order: Sequence[int]
    """For each of our classes, its label in the release."""
    missing: float
    """Share of the release's faces by which the counts differ."""


def match_release(case: CheckContext) -> ReleaseMatch | None:
    """The closest of the releases with our classes; None when none is close. Names of classes or sources alone do not
    settle it: thousands of other data sets have the same seven."""
    matches = []
    for release in RELEASES:
        order = align(case.material.classes, release)
        if order is None:
            continue
        wanted, found = expected_counts(release, order, case.material.splits), actual_counts(case, release)
        off = sum(
            int(np.abs(wanted.get(split, 0) - found.get(split, np.zeros(1, np.int64))).sum())
            for split in wanted.keys() | found.keys()
        )
        matches.append(ReleaseMatch(release, order, off / sum(map(sum, release.counts.values()))))
    best = min(matches, key=lambda match: match.missing, default=None)
    return best if best is not None and best.missing <= MAX_RELEASE_DIFF else None


def actual_counts(case: CheckContext, release: Release) -> dict[str, NDArray[np.int64]]:
    """Ours, by the names that `expected_counts` gives."""
    counts = dict(zip(case.material.splits, case.counts(), strict=True))
    if "validation" in counts and "validation" not in release.counts and "train" in counts:
        counts["train + validation"] = counts.pop("train") + counts.pop("validation")
    return counts


def check_identity(case: CheckContext) -> Iterator[Finding]:
    match = match_release(case)
    source = f"{case.material.kind} of source {case.material.source}"
    labels = case.material.options.get("labels")
    if isinstance(labels, str):
        source += f", labels {labels}"
    if match is not None:
        yield ok("dataset", f"{match.release.title}: {source}")
    elif case.material.source == "synthetic":
        yield ok("dataset", f"drawn faces: {source}")
    else:
        yield Finding("dataset", Severity.NOTE, f"{source}; no published counts to compare with")


def check_counts(case: CheckContext) -> Iterator[Finding]:
    """Faces a split and class against the published ones."""
    match = match_release(case)
    if match is None:
        return
    wanted, found = (
        expected_counts(match.release, match.order, case.material.splits),
        actual_counts(case, match.release),
    )
    for split in dict.fromkeys([*wanted, *found]):
        if split not in wanted or split not in found:
            lacking = "the data" if split in wanted else "the release"
            yield Finding("counts", Severity.WARNING, f"{lacking} has no such split", split)
            continue
        differences = found[split] - wanted[split]
        total, known = int(found[split].sum()), int(wanted[split].sum())
        if not differences.any():
            yield ok("counts", f"{total:,} faces, every class as published", split)
            continue
        told = ", ".join(
            f"{name} {count:+,}"
            for name, count in zip(case.material.classes, differences.tolist(), strict=True)
            if count
        )
        slight = np.abs(differences).sum() <= MINOR_RELEASE_DIFF * known
        yield Finding(
            "counts",
            Severity.NOTE if slight else Severity.WARNING,
            f"{total:,} faces where {known:,} are published ({told})",
            split,
            "figures are not quite comparable" if slight else "get the files again; results will not compare",
        )


def check_class_order(case: CheckContext) -> Iterator[Finding]:
    """Label numbers mean what the release's own mean, or a file of predictions or weights is read wrongly."""
    swapped = find_swapped_classes(case)
    if swapped is not None:
        yield swapped
    match = match_release(case)
    if match is None:
        return
    own = match.release.classes
    if all(name.isdigit() for name in case.material.classes):
        told = ", ".join(f"{name} {own[label]}" for name, label in zip(case.material.classes, match.order, strict=True))
        yield Finding(
            "class order", Severity.NOTE, f"classes are numbers; by the release: {told}", mend="name the folders so"
        )
    elif list(match.order) == sorted(match.order):
        yield ok("class order", "that of the release")
    else:
        yield Finding(
            "class order",
            Severity.NOTE,
            f"labels are {', '.join(case.material.classes)}; the release's own are {', '.join(own)}",
            mend="map the labels before comparing with other people's weights or predictions",
        )


def find_swapped_classes(case: CheckContext) -> Finding | None:
    """Counts that are a release's to the face, but under other names: the names were put to the wrong numbers."""
    for release in RELEASES:
        order = align(case.material.classes, release)
        if order is None:
            continue
        wanted, found = expected_counts(release, order, case.material.splits), actual_counts(case, release)
        split = next(iter(wanted))
        if split not in found or (wanted[split] == found[split]).all():
            continue
        ours, theirs = found[split].tolist(), wanted[split].tolist()
        if sorted(ours) == sorted(theirs) and len(set(ours)) == len(ours):
            names = case.material.classes
            told = ", ".join(
                f"{name} is {names[theirs.index(count)]}"
                for name, count, known in zip_longest(names, ours, theirs)
                if count != known
            )
            return Finding(
                "class order",
                Severity.ERROR,
                f"the counts are those of {release.title} under other names: {told}",
                split,
                "rename the classes",
            )
    return None
