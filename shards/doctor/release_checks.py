"""Identifies the published release of a dataset, and checks whether the data is complete."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adadf_dist.findings import Finding, Severity, ok
from shards.doctor.checks import CheckContext
from shards.doctor.releases import RELEASES, Release, align, expected_counts

MAX_RELEASE_DIFF = 0.25
"""Maximum difference in class counts, as a fraction of a release's samples, for the data to match the release."""
MINOR_RELEASE_DIFF = 0.02
"""Maximum difference in class counts, as a fraction of a split, that counts as minor (corrupt or withdrawn images)."""


class ReleaseMatch(NamedTuple):
    """A release, and how well the data matches it."""

    release: Release
    order: Sequence[int]
    """Maps each label of the data to the release's label for the same class."""
    missing: float
    """Total difference in class counts, as a fraction of the release's samples."""


def match_release(context: CheckContext) -> ReleaseMatch | None:
    """Return the release with the same classes and the most similar class counts, or None if none is close.

    The class names alone do not identify a release, because many datasets have the same seven classes.
    """
    matches = []
    for release in RELEASES:
        order = align(context.view.classes, release)
        if order is None:
            continue
        wanted, found = expected_counts(release, order, context.view.splits), actual_counts(context, release)
        off = sum(
            int(np.abs(wanted.get(split, 0) - found.get(split, np.zeros(1, np.int64))).sum())
            for split in wanted.keys() | found.keys()
        )
        matches.append(ReleaseMatch(release, order, off / sum(map(sum, release.counts.values()))))
    best = min(matches, key=lambda match: match.missing, default=None)
    return best if best is not None and best.missing <= MAX_RELEASE_DIFF else None


def actual_counts(context: CheckContext, release: Release) -> dict[str, NDArray[np.int64]]:
    """Return the data's class counts per split, with splits combined as in `expected_counts`."""
    counts = dict(zip(context.view.splits, context.counts(), strict=True))
    if "validation" in counts and "validation" not in release.counts and "train" in counts:
        counts["train + validation"] = counts.pop("train") + counts.pop("validation")
    return counts


def check_identity(context: CheckContext) -> Iterator[Finding]:
    match = match_release(context)
    source = f"{context.view.kind}, source {context.view.source}"
    labels = context.view.options.get("labels")
    if isinstance(labels, str):
        source += f", labels {labels}"
    if match is not None:
        yield ok("dataset", f"{match.release.title}: {source}")
    elif context.view.source == "synthetic":
        yield ok("dataset", f"synthetic faces: {source}")
    else:
        yield Finding("dataset", Severity.INFO, f"{source}; no published counts to compare with")


def check_counts(context: CheckContext) -> Iterator[Finding]:
    """Compare the number of samples per split and class with the published counts."""
    match = match_release(context)
    if match is None:
        return
    wanted, found = (
        expected_counts(match.release, match.order, context.view.splits),
        actual_counts(context, match.release),
    )
    for split in dict.fromkeys([*wanted, *found]):
        if split not in wanted or split not in found:
            lacking = "the data" if split in wanted else "the release"
            yield Finding("counts", Severity.WARNING, f"this split is missing from {lacking}", location=split)
            continue
        differences = found[split] - wanted[split]
        total, known = int(found[split].sum()), int(wanted[split].sum())
        if not differences.any():
            yield ok("counts", f"{total:,} samples, every class as published", split)
            continue
        text = ", ".join(
            f"{name} {count:+,}"
            for name, count in zip(context.view.classes, differences.tolist(), strict=True)
            if count
        )
        slight = np.abs(differences).sum() <= MINOR_RELEASE_DIFF * known
        yield Finding(
            "counts",
            Severity.INFO if slight else Severity.WARNING,
            f"{total:,} samples, published: {known:,} ({text})",
            "results are approximately comparable" if slight else "re-download the files; results are not comparable",
            split,
        )


def check_class_order(context: CheckContext) -> Iterator[Finding]:
    """Check that classes are numbered as in the official release, which third-party models rely on."""
    swapped = find_swapped_classes(context)
    if swapped is not None:
        yield swapped
    match = match_release(context)
    if match is None:
        return
    own = match.release.classes
    if all(name.isdigit() for name in context.view.classes):
        text = ", ".join(f"{name} {own[label]}" for name, label in zip(context.view.classes, match.order, strict=True))
        yield Finding(
            "class order",
            Severity.INFO,
            f"class names are numbers; the release names them {text}",
            "rename the folders",
        )
    elif list(match.order) == sorted(match.order):
        yield ok("class order", "matches the release")
    else:
        yield Finding(
            "class order",
            Severity.INFO,
            f"label order is {', '.join(context.view.classes)}; in the release it is {', '.join(own)}",
            "map the labels before comparing with third-party weights or predictions",
        )


def find_swapped_classes(context: CheckContext) -> Finding | None:
    """Return an error finding if the counts match a release only in another order, so class names must be mixed up."""
    for release in RELEASES:
        order = align(context.view.classes, release)
        if order is None:
            continue
        wanted, found = expected_counts(release, order, context.view.splits), actual_counts(context, release)
        split = next(iter(wanted))
        if split not in found or (wanted[split] == found[split]).all():
            continue
        ours, theirs = found[split].tolist(), wanted[split].tolist()
        if sorted(ours) == sorted(theirs) and len(set(ours)) == len(ours):
            names = context.view.classes
            text = ", ".join(
                f"{name} should be {names[theirs.index(count)]}"
                for name, count, known in zip_longest(names, ours, theirs)
                if count != known
            )
            return Finding(
                "class order",
                Severity.ERROR,
                f"the class counts match {release.title}, but with class names mixed up: {text}",
                "rename the classes",
                split,
            )
    return None
