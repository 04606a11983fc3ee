"""The report as one self-contained HTML page: no script, no external resources, affected images embedded."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from PIL import Image

from adadf_dist.data.jpeg import InvalidImageError, decode, encode, to_gray_or_rgb
from adadf_dist.data.manifest import SPLITS
from adadf_dist.findings import Finding, Severity
from shards.doctor.finding import SampleFinding, SampleGroup
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
    Severity.INFO: "Info",
    Severity.OK: "OK",
}


def render(report: Report) -> str:
    """Render the page as HTML. Every string from the data is escaped."""
    css = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    title = f"Doctor: {report.case.material.path.name}"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            '<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{css}</style></head>",
            "<body><main>",
            *head(report),
            *sections(report),
            "<h2>Faces</h2>",
            *count_table(report),
            *footer(report),
            "</main></body></html>\n",
        ]
    )


def head(report: Report) -> Iterator[str]:
    material = report.case.material
    yield f"<h1>{escape(material.path.resolve().name)}</h1>"
    identity = next((finding.message for finding in report.findings if finding.name == "dataset"), material.kind)
    yield f'<p class="lead">{escape(identity)} &middot; {len(material):,} samples, {len(material.classes)} classes</p>'
    yield '<ul class="tally">'
    for severity in reversed(Severity):
        count = sum(finding.severity == severity for finding in report.findings)
        shown = severity.word if count else f"{severity.word} none"
        yield f'<li class="{shown}"><b>{count}</b><span>{severity.plural(count)}</span></li>'
    yield "</ul>"


def sections(report: Report) -> Iterator[str]:
    """Yield the sections, errors first; passed checks come last and small."""
    ranked = sorted(report.findings, key=lambda finding: -finding.severity)
    for severity, findings in groupby(ranked, key=lambda finding: finding.severity):
        yield f"<h2>{_TITLES[severity]}</h2>"
        if severity is Severity.OK:
            yield '<ul class="fine ok">'
            for finding in findings:
                yield f'<li><span class="check">{escape(finding.name)}</span> {escape(finding.message)}</li>'
            yield "</ul>"
            continue
        for finding in findings:
            yield from section(report, finding)


def section(report: Report, finding: Finding) -> Iterator[str]:
    yield f'<section class="finding {finding.severity.word}">'
    where = f' <span class="lead">({escape(finding.location)})</span>' if finding.location else ""
    if finding.location in SPLITS:
        where = f' <span class="split {finding.location}">{finding.location}</span>'
    yield f'<header><span class="check">{escape(finding.name)}</span><h3>{escape(finding.message)}{where}</h3></header>'
    if finding.hint:
        yield f'<p class="hint">{escape(finding.hint)}</p>'
    if isinstance(finding, SampleFinding) and finding.sample_groups:
        yield '<div class="groups">'
        for samples in finding.sample_groups[:MAX_GROUPS]:
            yield from group(report, samples)
        yield "</div>"
        hidden = len(finding.sample_groups) - MAX_GROUPS
        if hidden > 0:
            yield f'<p class="more">and {hidden:,} more; see <code>--json</code></p>'
    yield "</section>"


def group(report: Report, samples: SampleGroup) -> Iterator[str]:
    yield '<div class="group">'
    if samples.note:
        yield f"<p>{escape(samples.note)}</p>"
    yield '<div class="faces">'
    for face in pick(report, samples.faces):
        yield figure(report, face)
    yield "</div>"
    hidden = len(samples.faces) - MAX_FACES
    if hidden > 0:
        yield f'<p class="more">and {hidden:,} more in this group</p>'
    yield "</div>"


def pick(report: Report, faces: Sequence[int]) -> Iterable[int]:
    """Select the images to show so that every split and class of the group appears if possible."""
    if len(faces) <= MAX_FACES:
        return faces
    looks, split_of = report.case.looks, report.case.material.split_of
    firsts = {(int(split_of[face]), int(looks.label[face])): face for face in reversed(faces)}
    chosen = sorted(firsts.values())[:MAX_FACES]
    others = [face for face in faces if face not in chosen]
    return sorted([*chosen, *others[: MAX_FACES - len(chosen)]])


def figure(report: Report, face: int) -> str:
    text = report.describe(face)
    name = str(text["name"])
    short = name.rpartition("/")[2]
    encoded = unique_image(report, face)
    shown = '<div class="lost">unreadable</div>'
    if encoded is not None:
        shown = f'<img alt="{escape(name)}" src="data:image/jpeg;base64,{encoded}">'
    return (
        f'<figure>{shown}<figcaption><span class="split {text["split"]}">{text["split"]}</span>'
        f"<b>{escape(text['class'] or 'class unknown')}</b>"
        f'<code title="{escape(name)}">{escape(short)}</code></figcaption></figure>'
    )


def unique_image(report: Report, face: int) -> str | None:
    """Return the image as base64 of a small JPEG; None if unreadable."""
    try:
        data = report.case.material.faces.read(face).data
        image = to_gray_or_rgb(decode(data))
    except InvalidImageError:
        return None
    if max(image.size) > SIDE or len(data) > 2**14:
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        data = encode(image, 88).data
    return base64.b64encode(data).decode("ascii")


def count_table(report: Report) -> Iterator[str]:
    """Readable samples per class and split; bars show the fraction of train, or of the first split."""
    material, counts = report.case.material, report.case.counts()
    splits = "".join(f"<th>{escape(split)}</th>" for split in material.splits)
    yield f'<div class="card"><table><thead><tr><th>class</th><th></th>{splits}</tr></thead><tbody>'
    most = max(1, int(counts[0].max())) if len(counts) else 1
    for label, name in enumerate(material.classes):
        cells = "".join(f"<td>{row[label]:,}</td>" for row in counts)
        width = 100 * int(counts[0][label]) / most if len(counts) else 0
        bar = f'<td class="bar"><i style="width:{width:.1f}%"></i></td>'
        yield f"<tr><th>{label} &middot; {escape(name)}</th>{bar}{cells}</tr>"
    sums = "".join(f"<td>{row.sum():,}</td>" for row in counts)
    yield f"</tbody><tfoot><tr><th>all</th><td></td>{sums}</tr></tfoot></table></div>"


def footer(report: Report) -> Iterator[str]:
    yield f"<footer>python -m shards.doctor {escape(str(report.case.material.path))}</footer>"
