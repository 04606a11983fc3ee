"""Gallery page of the most likely mislabeled samples, for reviewing labels. Works offline; images are embedded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adadf_dist.audit.ranking import AuditResult
from adadf_dist.data.dataset import Split
from adadf_dist.data.jpeg import InvalidImageError, thumbnail_url
from adadf_dist.html.render import render_page

SIDE = 160
"""Longest side of an embedded image in pixels; smaller images are embedded unchanged."""


def render(findings: AuditResult, most: int) -> str:
    """Render the HTML page of the `most` most likely mislabeled samples. Reads their images from the shards."""
    material = findings.material
    chosen = findings.ranked[:most].tolist()
    return render_page(
        Path(__file__).with_name("gallery.html"),
        title=f"Audit: {material.run.resolve().name}",
        command=f"python -m adadf_dist.audit {material.run}",
        run=material.run.resolve().name,
        shown=f"{len(chosen):,}",
        total=f"{len(material.labels):,}",
        epoch=material.trained.epoch,
        epochs=material.traces.epochs,
        unfinished=material.under_way,
        data={
            "run": f"adadf-audit/{material.split.digest()[:24]}",
            "classes": material.classes,
            "faces": [face_data(findings, face, rank) for rank, face in enumerate(chosen, start=1)],
        },
    )


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
        "suggested_label": int(findings.suggested_label[face]),
        "label_error_score": round(float(findings.label_error_score[face]), 4),
        "attention": format_probability(traces.attention_mean[face]),
        "loss": format_probability(traces.loss_mean[face]),
        "forgetting_events": int(traces.forgetting_events[face]),
        "never_learned": bool(traces.never_learned[face]),
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
    """Return the sample's image as a data URL; None if it cannot be read."""
    try:
        return thumbnail_url(bytes(split.read(face)), SIDE)
    except InvalidImageError:
        return None
