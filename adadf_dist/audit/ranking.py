"""Result of an audit: label error scores and proposed labels, ranked, and written as a table."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adadf_dist.audit.run_data import AuditInputs
from adadf_dist.files.atomic import atomic_write

Floats = NDArray[np.float64]


class AuditResult(NamedTuple):
    """Results for S training samples, in the order of the split."""

    material: AuditInputs
    auxiliary: Floats
    """[S, C], label distributions (eq 1, 2)."""
    target: Floats
    """[S, C], predicted distributions."""
    label_error_score: Floats
    """[S], label error score in [0, 1]: 1 minus the label's mean probability over both branches. Selected by comparing
    scores on known label errors: see the table in docs/audit.md."""
    suggested_label: NDArray[np.int64]
    """[S], most likely class by the mean of both branches; the label itself if they agree with it."""
    ranked: NDArray[np.intp]
    """[S], sample indices, most likely mislabeled first; ties in the order of the split."""

    def truth_of(self, face: int) -> int:
        """Return the label before injected noise, for display only; -1 if no noise was injected."""
        return int(self.material.faces.true_labels[face]) if self.material.noisy else -1


def score_labels(material: AuditInputs) -> AuditResult:
    auxiliary, target = material.answers.auxiliary_probs, material.answers.target_probs
    mean_probs = (target + auxiliary) / 2
    score = 1 - mean_probs[np.arange(len(material.labels)), material.labels]
    ranked = np.argsort(-score, kind="stable")
    return AuditResult(material, auxiliary, target, score, mean_probs.argmax(axis=1), ranked)


def write_table(path: Path, findings: AuditResult) -> None:
    """Write `audit.csv` atomically: one row per sample, most likely mislabeled first. Raises `UserError`."""
    classes = findings.material.classes
    with atomic_write(path) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        traces = ("attention_mean", "attention_last", "loss_mean", "loss_last", "forgetting_events", "never_learned")
        kinds = [f"{kind}_{name}" for kind in ("auxiliary", "target", "fused") for name in classes]
        known = ["true_label"] if findings.material.noisy else []
        writer.writerow(["rank", "key", "label", "suggested_label", "label_error_score", *traces, *known, *kinds])
        for rank, face in enumerate(findings.ranked.tolist(), start=1):
            writer.writerow([rank, *row(findings, face)])


def row(findings: AuditResult, face: int) -> Iterator[object]:
    """Yield the cells of a sample after its rank. Unknown values are empty."""
    material, traces = findings.material, findings.material.traces
    classes = material.classes
    yield material.split.keys[face]
    yield classes[material.labels[face]]
    yield classes[findings.suggested_label[face]]
    yield number(findings.label_error_score[face])
    for column in (traces.attention_mean, traces.attention_last, traces.loss_mean, traces.loss_last):
        yield number(column[face])
    yield int(traces.forgetting_events[face])
    yield int(traces.never_learned[face])
    if material.noisy:
        yield classes[findings.truth_of(face)]
    for distributions in (findings.auxiliary, findings.target, material.fused):
        for share in distributions[face]:
            yield number(share)


def number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6g}"
