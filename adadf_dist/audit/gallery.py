"""Gallery page of the most likely mislabeled samples, for reviewing labels. Works offline; images are embedded."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adadf_dist.audit.ranking import AuditResult
from adadf_dist.data.dataset import Split
from adadf_dist.data.jpeg import InvalidImageError, decode, encode, to_gray_or_rgb

SIDE = 160
"""Longest side of an embedded image in pixels; smaller images are embedded unchanged."""

HELP = """\
<p class="help"><kbd>←</kbd> <kbd>→</kbd> <kbd>↑</kbd> <kbd>↓</kbd> move between samples, or click one.
<kbd>K</kbd> keep, <kbd>D</kbd> drop, <kbd>R</kbd> relabel to the selected class, <kbd>1</kbd> to <kbd>9</kbd> relabel
to the class with this number, <kbd>U</kbd> undo. Decisions are saved in this browser; <em>Export relabel.csv</em> saves
them for <code>--data.relabel</code> of the trainer and <code>--relabel</code> of the builder.</p>
<p class="warning" id="unkept" hidden>This browser cannot save decisions; export before closing the page.</p>"""

TOOLS = """\
<div class="bar"><div>
<label>label <select id="label"><option value="">any</option></select></label>
<label>pair <select id="pair"><option value="">any</option></select></label>
<label>show <select id="which"><option value="all">all</option><option value="open">undecided</option>
<option value="decided">decided</option></select></label>
<span id="count"></span><button id="export">Export relabel.csv</button>
</div></div>"""


def render(findings: AuditResult, most: int) -> str:
    """Render the HTML page of the `most` most likely mislabeled samples. Reads their images from the shards."""
    folder = Path(__file__).parent
    css, script = ((folder / name).read_text(encoding="utf-8") for name in ("gallery.css", "gallery.js"))
    material = findings.material
    chosen = findings.ranked[:most].tolist()
    data = {
        "run": f"adadf-audit/{material.split.digest()[:24]}",
        "classes": material.classes,
        "faces": [face_data(findings, face, rank) for rank, face in enumerate(chosen, start=1)],
    }
    content = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # no key may close the script element
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head>{head}',
        f"<title>Audit: {escape(material.run.resolve().name)}</title>",
        f"<style>\n{css}</style></head><body>",
        f"<header>{''.join(header_html(findings, len(chosen)))}{HELP}</header>",
        TOOLS,
        '<main><div id="faces"></div></main>',
        f"<footer>python -m adadf_dist.audit {escape(str(material.run))}</footer>",
        f'<script type="application/json" id="data">{content}</script>',
        f"<script>\n{script}</script></body></html>\n",
    ]
    return "\n".join(parts)


def header_html(findings: AuditResult, shown: int) -> Iterator[str]:
    material = findings.material
    yield f"<h1>{escape(material.run.resolve().name)}: likely mislabeled samples</h1>"
    text = f"The {shown:,} most likely mislabeled of {len(material.labels):,} training samples. Predictions are from "
    text += f"epoch {material.trained.epoch}; attention and loss are means over {material.traces.epochs} epochs. Label "
    text += "error score: 1 minus the label's mean probability over auxiliary and target branch."
    yield f'<p class="lead">{escape(text)}</p>'
    if material.under_way:
        yield f'<p class="warning">{escape(material.under_way)}</p>'


def face_data(findings: AuditResult, face: int, rank: int) -> dict[str, object]:
    """Return the page's data of a sample, with rounded numbers."""
    material, traces = findings.material, findings.material.traces
    votes = None if material.split.votes is None else material.split.votes[face]
    truth = findings.truth_of(face)
    return {
        "key": str(material.split.keys[face]),
        "rank": rank,
        "label": int(material.labels[face]),
        "stored": int(material.stored_labels[face]),
        "proposed": int(findings.proposed[face]),
        "suspicion": round(float(findings.suspicion[face]), 4),
        "attention": format_probability(traces.attention_mean[face]),
        "loss": format_probability(traces.loss_mean[face]),
        "forgotten": int(traces.forgotten[face]),
        "never_learnt": bool(traces.never_learnt[face]),
        "votes": shares(votes) if votes is not None and votes.sum() > 0 else None,
        "auxiliary": shares(findings.auxiliary[face]),
        "target": shares(findings.target[face]),
        "fused": shares(material.fused[face]),
        "truth": None if truth < 0 or truth == material.labels[face] else material.classes[truth],
        "picture": picture(material.split, face),
    }


def format_probability(value: float) -> str:
    return "unknown" if value != value else f"{value:.2f}"


def shares(values: NDArray[Any]) -> list[float]:
    row = np.asarray(values, dtype=np.float64)
    return [round(float(share), 3) for share in row / row.sum()]


def picture(split: Split, face: int) -> str | None:
    """Return the sample's image as a base64 JPEG; None if it cannot be read."""
    try:
        data = bytes(split.read(face))
        image = to_gray_or_rgb(decode(data))
    except InvalidImageError:
        return None
    if max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        data = encode(image, 88).data
    return base64.b64encode(data).decode("ascii")
