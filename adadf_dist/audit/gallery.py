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


def render(result: AuditResult, most: int) -> str:
    """Return an HTML page of up to `most` samples, most likely mislabeled first. Reads their images from the shards."""
    inputs = result.material
    shown = result.ranked[:most].tolist()
    name = inputs.run.resolve().name
    return render_page(
        Path(__file__).with_name("gallery.html"),
        title=f"Audit: {name}",
        command=f"python -m adadf_dist.audit {inputs.run}",
        run=name,
        shown=f"{len(shown):,}",
        total=f"{len(inputs.labels):,}",
        epoch=inputs.trained.epoch,
        epochs=inputs.traces.epochs,
        unfinished=inputs.progress_note,
        data={
            "run": f"adadf-audit/{inputs.split.digest()[:24]}",
            "classes": inputs.classes,
            "faces": [describe_sample(result, index, rank) for rank, index in enumerate(shown, start=1)],
        },
    )


def describe_sample(result: AuditResult, index: int, rank: int) -> dict[str, object]:
    """Return the data about a sample that the page shows, with rounded numbers."""
    inputs, dynamics = result.material, result.material.traces
    votes = None if inputs.split.votes is None else inputs.split.votes[index]
    true_label = result.true_label(index)
    return {
        "key": str(inputs.split.keys[index]),
        "rank": rank,
        "label": int(inputs.labels[index]),
        "stored": int(inputs.stored_labels[index]),
        "suggested_label": int(result.suggested_label[index]),
        "label_error_score": round(float(result.label_error_score[index]), 4),
        "attention": format_number(dynamics.attention_mean[index]),
        "loss": format_number(dynamics.loss_mean[index]),
        "forgetting_events": int(dynamics.forgetting_events[index]),
        "never_learned": bool(dynamics.never_learned[index]),
        "votes": round_fractions(votes) if votes is not None and votes.sum() > 0 else None,
        "auxiliary": round_fractions(result.auxiliary[index]),
        "target": round_fractions(result.target[index]),
        "fused": round_fractions(inputs.fused[index]),
        "truth": None if true_label in (-1, inputs.labels[index]) else inputs.classes[true_label],
        "picture": find_thumbnail(inputs.split, index),
    }


def format_number(value: float) -> str:
    return "unknown" if np.isnan(value) else f"{value:.2f}"


def round_fractions(values: NDArray[Any]) -> list[float]:
    row = np.asarray(values, dtype=np.float64)
    return [round(float(fraction), 3) for fraction in row / row.sum()]


def find_thumbnail(split: Split, index: int) -> str | None:
    """Return the sample's image as a data URL; None if it cannot be read."""
    try:
        return thumbnail_url(bytes(split.read(index)), SIDE)
    except InvalidImageError:
        return None
