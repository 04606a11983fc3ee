"""Result of an audit: label error scores and proposed labels, ranked, and written as a table."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adadf_dist.audit.reference_labels import ReferenceLabels
from adadf_dist.audit.run_data import AuditInputs
from adadf_dist.audit.scores import SampleEvidence, label_error_score, suggest_labels
from adadf_dist.files.atomic import atomic_write

Floats = NDArray[np.float64]


class AuditResult(NamedTuple):
    """Results for S training samples, in the order of the split."""

    material: AuditInputs
    evidence: SampleEvidence
    suspicion: Floats
    """[S], label error score in [0, 1]."""
    proposed: NDArray[np.int64]
    """[S]; the label itself if the model agrees with it."""
    ranked: NDArray[np.intp]
    """[S], sample indices, most likely mislabeled first; ties in the order of the split."""
    truth: ReferenceLabels | None
    """Reference labels, only for display; never used for scoring."""

    def truth_of(self, face: int) -> int:
        """Return the reference label, or -1 if unknown."""
        return -1 if self.truth is None else int(self.truth.labels[face])


def score_labels(material: AuditInputs, truth: ReferenceLabels | None) -> AuditResult:
    answers = material.answers
    evidence = SampleEvidence(
        material.labels, material.traces, answers.target_probs, answers.auxiliary_probs, material.fused
    )
    score = label_error_score(evidence)
    return AuditResult(material, evidence, score, suggest_labels(evidence), np.argsort(-score, kind="stable"), truth)


def write_table(path: Path, findings: AuditResult) -> None:
    """Write `audit.csv` atomically: one row per sample, most likely mislabeled first. Raises `UserError`."""
    classes = findings.material.classes
    with atomic_write(path) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        traces = ("attention_mean", "attention_last", "loss_mean", "loss_last", "forgotten", "never_learnt")
        kinds = [f"{kind}_{name}" for kind in ("auxiliary", "target", "fused") for name in classes]
        known = ["true_label"] if findings.truth is not None else []
        writer.writerow(["rank", "key", "label", "proposed", "suspicion", *traces, *known, *kinds])
        for rank, face in enumerate(findings.ranked.tolist(), start=1):
            writer.writerow([rank, *row(findings, face)])


def row(findings: AuditResult, face: int) -> Iterator[object]:
    """Yield the cells of a sample after its rank. Unknown values are empty."""
    material, traces = findings.material, findings.material.traces
    classes = material.classes
    yield material.split.keys[face]
    yield classes[material.labels[face]]
    yield classes[findings.proposed[face]]
    yield number(findings.suspicion[face])
    for column in (traces.attention_mean, traces.attention_last, traces.loss_mean, traces.loss_last):
        yield number(column[face])
    yield int(traces.forgotten[face])
    yield int(traces.never_learnt[face])
    if findings.truth is not None:
        truth = findings.truth_of(face)
        yield classes[truth] if truth >= 0 else ""
    for distributions in (findings.evidence.auxiliary, findings.evidence.target, findings.evidence.fused):
        for share in distributions[face]:
            yield number(share)


def number(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6g}"
