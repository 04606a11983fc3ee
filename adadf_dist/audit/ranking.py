"""Results of an audit: label error scores and suggested labels, ranked and written to a table."""

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
    """Audit results for S training samples and C classes, in the order of the split."""

    material: AuditInputs
    auxiliary: Floats
    """[S, C], label distributions predicted by the auxiliary branch (eq 1, 2)."""
    target: Floats
    """[S, C], distributions predicted by the target branch."""
    label_error_score: Floats
    """[S], label error score in [0, 1]: 1 minus the label's mean probability over both branches. docs/audit.md
    compares it with other scores on known label errors."""
    suggested_label: NDArray[np.int64]
    """[S], class with the highest mean probability over both branches; equals the label if they agree with it."""
    ranked: NDArray[np.intp]
    """[S], sample indices, most likely mislabeled first; ties are in the order of the split."""

    def true_label(self, index: int) -> int:
        """Return the sample's label before noise was injected, for display only; -1 if no noise was injected."""
        return int(self.material.faces.true_labels[index]) if self.material.noisy else -1


def score_labels(inputs: AuditInputs) -> AuditResult:
    auxiliary, target = inputs.answers.auxiliary_probs, inputs.answers.target_probs
    mean_probs = (target + auxiliary) / 2
    score = 1 - mean_probs[np.arange(len(inputs.labels)), inputs.labels]
    ranked = np.argsort(-score, kind="stable")
    return AuditResult(inputs, auxiliary, target, score, mean_probs.argmax(axis=1), ranked)


def write_table(path: Path, result: AuditResult) -> None:
    """Write `audit.csv` atomically: one row per sample, most likely mislabeled first."""
    classes = result.material.classes
    with atomic_write(path) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        dynamics = ("attention_mean", "attention_last", "loss_mean", "loss_last", "forgetting_events", "never_learned")
        probabilities = [f"{kind}_{name}" for kind in ("auxiliary", "target", "fused") for name in classes]
        true_label = ["true_label"] if result.material.noisy else []
        writer.writerow(
            ["rank", "key", "label", "suggested_label", "label_error_score", *dynamics, *true_label, *probabilities]
        )
        for rank, index in enumerate(result.ranked.tolist(), start=1):
            writer.writerow([rank, *list_cells(result, index)])


def list_cells(result: AuditResult, index: int) -> Iterator[object]:
    """Yield the cells of a sample's row that follow its rank. Unknown values are empty."""
    inputs, dynamics = result.material, result.material.traces
    classes = inputs.classes
    yield inputs.split.keys[index]
    yield classes[inputs.labels[index]]
    yield classes[result.suggested_label[index]]
    yield format_number(result.label_error_score[index])
    for column in (dynamics.attention_mean, dynamics.attention_last, dynamics.loss_mean, dynamics.loss_last):
        yield format_number(column[index])
    yield int(dynamics.forgetting_events[index])
    yield int(dynamics.never_learned[index])
    if inputs.noisy:
        yield classes[result.true_label(index)]
    for distributions in (result.auxiliary, result.target, inputs.fused):
        yield from map(format_number, distributions[index])


def format_number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6g}"
