"""The report as one self-contained HTML page: no script, no external resources, affected images embedded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from adadf_dist.data.jpeg import InvalidImageError, thumbnail_url
from adadf_dist.data.manifest import SPLITS
from adadf_dist.html.render import render_page
from shards.doctor.finding import Finding, SampleGroup, Severity
from shards.doctor.report import Report

MAX_GROUPS = 24
"""Groups shown per finding; `--json` has all."""
MAX_FACES = 8
"""Images shown per group."""
SIDE = 112
"""Longest side of an embedded image, in pixels; smaller ones are embedded unchanged."""

_TITLES = {
    Severity.ERROR: "Errors",
    Severity.WARNING: "Warnings",
    Severity.NOTE: "Notes",
    Severity.OK: "OK",
}


def render(report: Report) -> str:
    """Render the page as HTML."""
    material = report.case.material
    identity = next((verdict.what for verdict in report.verdicts if verdict.check == "dataset"), material.kind)
    return render_page(
        Path(__file__).with_name("page.html"),
        title=f"Doctor: {material.path.name}",
        stylesheet="page.css",
        command=f"python -m shards.doctor {material.path}",
        name=material.path.resolve().name,
        lead=[identity, f"{len(material):,} samples, {len(material.classes)} classes"],
        tally=list(tally(report)),
        sections=list(sections(report)),
        known_splits=SPLITS,
        splits=material.splits,
        counts=list(count_rows(report)),
    )


def tally(report: Report) -> Iterator[tuple[str, int, str]]:
    """Yield the name, number of findings and caption of each severity."""
    for severity in reversed(Severity):
        count = sum(verdict.severity == severity for verdict in report.verdicts)
        yield severity.word, count, severity.word + ("s" if count != 1 and severity is not Severity.OK else "")


def sections(report: Report) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield title and findings of each section, errors first."""
    ranked = sorted(report.verdicts, key=lambda verdict: -verdict.severity)
    for severity, verdicts in groupby(ranked, key=lambda verdict: verdict.severity):
        yield _TITLES[severity], [describe_finding(report, verdict) for verdict in verdicts]


def describe_finding(report: Report, verdict: Finding) -> dict[str, Any]:
    return {
        "severity": verdict.severity.word,
        "name": verdict.check,
        "message": verdict.what,
        "location": verdict.where,
        "hint": verdict.hint,
        "groups": [describe_group(report, exhibit) for exhibit in verdict.exhibits[:MAX_GROUPS]],
        "hidden": len(verdict.exhibits) - MAX_GROUPS,
    }


def describe_group(report: Report, exhibit: SampleGroup) -> dict[str, Any]:
    samples = [describe_sample(report, face) for face in pick(report, exhibit.faces)]
    return {"note": exhibit.remark, "samples": samples, "hidden": len(exhibit.faces) - MAX_FACES}


def pick(report: Report, faces: Sequence[int]) -> Iterable[int]:
    """Select the images to show so that every split and class of the group appears if possible."""
    if len(faces) <= MAX_FACES:
        return faces
    looks, split_of = report.case.looks, report.case.material.split_of
    firsts = {(int(split_of[face]), int(looks.label[face])): face for face in reversed(faces)}
    chosen = sorted(firsts.values())[:MAX_FACES]
    others = [face for face in faces if face not in chosen]
    return sorted([*chosen, *others[: MAX_FACES - len(chosen)]])


def describe_sample(report: Report, face: int) -> dict[str, str | None]:
    """Return split, name and class of a sample, and its image as a data URL; None if unreadable."""
    try:
        url = thumbnail_url(report.case.material.faces.read(face).data, SIDE)
    except InvalidImageError:
        url = None
    return {**report.describe(face), "url": url}


def count_rows(report: Report) -> Iterator[dict[str, Any]]:
    """Yield readable samples per class and split, then the sums.

    The width of a bar, in percent, is relative to the largest class of train, or of the first split.
    """
    counts = report.case.counts()
    most = max(1, int(counts[0].max())) if len(counts) else 1
    for label, name in enumerate(report.case.material.classes):
        width = 100 * int(counts[0][label]) / most if len(counts) else 0
        texts = [f"{row[label]:,}" for row in counts]
        yield {"name": f"{label} \u00b7 {name}", "width": f"{width:.1f}", "counts": texts}
    yield {"name": "all", "width": "", "counts": [f"{row.sum():,}" for row in counts]}
