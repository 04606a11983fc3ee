"""Renders the report as a self-contained HTML page with embedded images, without scripts or external resources."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from adadf_dist.data.jpeg import InvalidImageError, thumbnail_url
from adadf_dist.data.manifest import SPLITS
from adadf_dist.findings import Severity
from adadf_dist.html.render import render_page
from shards.doctor.report import Report

MAX_GROUPS = 24
"""Maximum number of groups shown per finding; `--json` lists all of them."""
MAX_FACES = 8
"""Maximum number of images shown per group."""
SIDE = 112
"""Maximum longer side of an embedded image in pixels; smaller images are embedded unchanged."""

_TITLES = {
    Severity.ERROR: "Errors",
    Severity.WARNING: "Warnings",
    Severity.INFO: "Info",
    Severity.OK: "OK",
}


def render(report: Report) -> str:
    """Return the report as an HTML page."""
    view = report.context.view
    identity = next((finding.message for finding in report.findings if finding.name == "dataset"), view.kind)
    return render_page(
        Path(__file__).with_name("page.html"),
        title=f"Doctor: {view.path.name}",
        command=f"python -m shards.doctor {view.path}",
        name=view.path.resolve().name,
        lead=f"{identity} \u00b7 {len(view):,} samples, {len(view.classes)} classes",
        report=report,
        severities=list(reversed(Severity)),
        sections=_TITLES,
        known_splits=SPLITS,
        counts=report.context.counts(),
        pick=pick,
        image_url=image_url,
        max_groups=MAX_GROUPS,
    )


def pick(report: Report, faces: Sequence[int]) -> Iterable[int]:
    """Select up to `MAX_FACES` samples of a group so that each of its splits and classes is shown if possible."""
    if len(faces) <= MAX_FACES:
        return faces
    image_stats, split_of = report.context.image_stats, report.context.view.split_of
    firsts = {(int(split_of[face]), int(image_stats.label[face])): face for face in reversed(faces)}
    chosen = sorted(firsts.values())[:MAX_FACES]
    others = [face for face in faces if face not in chosen]
    return sorted([*chosen, *others[: MAX_FACES - len(chosen)]])


def image_url(report: Report, face: int) -> str:
    """Return a thumbnail of a sample as a data URL, or an empty string if the image is unreadable."""
    try:
        return thumbnail_url(report.context.view.faces.read(face).data, SIDE)
    except InvalidImageError:
        return ""
