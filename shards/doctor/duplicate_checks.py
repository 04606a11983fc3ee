"""Checks for duplicates: leaks between splits, duplicates within a split, and conflicting labels."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from adadf_dist.console.formats import plural
from adadf_dist.findings import Finding, Severity, ok
from shards.doctor.checks import CheckContext
from shards.doctor.duplicates import Kind
from shards.doctor.finding import SampleFinding, SampleGroup

KINDS: dict[Kind, str] = {"exact": "exact copy", "near": "near copy", "mirrored": "mirrored copy"}


def check_leaks(context: CheckContext) -> Iterator[Finding]:
    """Report samples with copies in another split, each under its closest kind of copy: exact, near or mirrored."""
    splits, split_of = context.view.splits, context.view.split_of
    text = np.zeros((len(split_of), len(splits)), np.bool_)
    absent = []
    for kind, name in KINDS.items():
        reach = context.copies.splits_with_copies(kind, split_of)
        groups = [group for group in context.copies.groups(kind) if len({int(split_of[face]) for face in group}) > 1]
        clean = True
        for low, high in combinations(range(len(splits)), 2):
            leaks = np.flatnonzero((split_of == low) & (reach >> high & 1).astype(bool) & ~text[:, high])
            if not len(leaks):
                continue
            clean = False
            text[leaks, high] = True
            members = set(leaks.tolist())
            shown = [group for group in groups if members.intersection(group) and high in split_of[list(group)]]
            yield SampleFinding(
                "leaks",
                Severity.ERROR if kind == "exact" else Severity.WARNING,
                f"{plural(len(leaks), 'face')} with {article(name)} in {splits[high]}",
                leak_hint(context, kind),
                splits[low],
                tuple(SampleGroup(group, note(context, group)) for group in shown),
            )
        if clean:
            absent.append(name)
    if absent:
        yield ok("leaks", f"no {' and no '.join(absent)} across splits")


def leak_hint(context: CheckContext, kind: Kind) -> str:
    if kind != "exact":
        return "evaluate without these samples, or drop them from training (listed by --json)"
    if context.view.kind == "original dataset":
        return "the builder drops them from training unless --keep-leaks is set"
    return "rebuild without --keep-leaks" if context.view.options.get("keep_leaks") else "drop them from training"


def article(name: str) -> str:
    return f"an {name}" if name.startswith("exact") else f"a {name}"


def note(context: CheckContext, group: tuple[int, ...]) -> str:
    labels = {int(context.image_stats.label[face]) for face in group}
    return "labels differ" if len(labels) > 1 else ""


def check_duplicates(context: CheckContext) -> Iterator[Finding]:
    """Report copies within one split."""
    absent = []
    for kind, name in KINDS.items():
        reach = context.copies.splits_with_copies(kind, context.view.split_of)
        clean = True
        for number, split in enumerate(context.view.splits):
            mine = np.flatnonzero((context.view.split_of == number) & (reach >> number & 1).astype(bool))
            if not len(mine):
                continue
            clean = False
            groups = groups_within_split(context, kind, number)
            yield SampleFinding(
                "duplicates",
                Severity.WARNING if split != "train" and kind == "exact" else Severity.INFO,
                f"{plural(len(mine), 'face')} with {article(name)} in the same split, {plural(len(groups), 'group')}",
                "counted more than once in the accuracy; keep one"
                if split != "train"
                else "duplicates count more than once in training",
                split,
                tuple(SampleGroup(group, note(context, group)) for group in groups),
            )
        if clean:
            absent.append(name)
    if absent:
        yield ok("duplicates", f"no {' and no '.join(absent)} within a split")


def groups_within_split(context: CheckContext, kind: Kind, split: int) -> list[tuple[int, ...]]:
    """Return the groups of copies of the given kind, restricted to the samples of one split."""
    cut = (
        tuple(face for face in group if context.view.split_of[face] == split) for group in context.copies.groups(kind)
    )
    return [group for group in cut if len(group) > 1]


def check_conflicts(context: CheckContext) -> Iterator[Finding]:
    """Report copies of an image that have different labels, which reveals label noise."""
    labels = context.image_stats.label
    agreeing = []
    for kind, name in KINDS.items():
        groups = list(context.copies.groups(kind))
        if not groups:
            continue
        conflicts = [group for group in groups if len({int(labels[face]) for face in group}) > 1]
        if not conflicts:
            agreeing.append(f"{name.removesuffix('y')}ies")
            continue
        faces = np.array(sorted({face for group in conflicts for face in group}))
        yield SampleFinding(
            "labels",
            Severity.WARNING if kind == "exact" else Severity.INFO,
            f"{plural(len(conflicts), 'group')} of {name.removesuffix('y')}ies with different labels "
            f"({share(len(conflicts), len(groups))} of {plural(len(groups), 'group')}, {plural(len(faces), 'face')})",
            "resolve manually or by majority vote; they cap the achievable accuracy",
            context.per_split(faces),
            tuple(SampleGroup(group, confusion(context, labels[list(group)])) for group in conflicts),
        )
    if agreeing:
        yield ok("labels", f"{' and '.join(agreeing)} have consistent labels")


def share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}"


def confusion(context: CheckContext, labels: NDArray[np.int16]) -> str:
    names = [context.view.classes[label] for label in sorted(set(labels.tolist()))]
    return " or ".join(names)
