"""Evaluate how well the audit's score and baselines find known label errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from adadf_dist.audit.ranking import AuditResult
from adadf_dist.audit.reference_labels import ReferenceLabels
from adadf_dist.audit.scores import BASELINE_SCORES, fill_missing
from adadf_dist.console.tables import markdown_table

Floats = NDArray[np.float64]

NO_CLEANLAB = "confident learning skipped: cleanlab is not installed; pip install 'adadf_dist[audit]'"
IN_SAMPLE = (
    "Confident learning uses in-sample predictions here. Its authors recommend out-of-sample predictions from "
    "cross-validation, which would take several runs."
)


class ScoreRow(NamedTuple):
    """One score on one set of reference labels. Fractions in [0, 1]; NaN if undefined."""

    name: str
    auc: float
    at_changed: float
    """Precision at k = number of wrong labels."""
    at_1: float
    """Precision at the top 1% of the samples."""
    at_5: float
    """Precision at the top 5% of the samples."""


class ScoreReport(NamedTuple):
    truth: ReferenceLabels
    faces: int
    """Number of samples with a reference label."""
    wrong: int
    rows: Sequence[ScoreRow]
    proposals: float
    """Of the wrong labels among the top `wrong` samples, the fraction whose proposed label is correct. Ties are in the
    order of the split."""
    remarks: Sequence[str]

    def to_dict(self) -> dict[str, object]:
        rows = [{k: None if v != v else v for k, v in row._asdict().items()} for row in self.rows]
        proposals = None if self.proposals != self.proposals else self.proposals
        text = {"truth": self.truth.source, "faces": self.faces, "wrong": self.wrong, "scores": rows}
        return {**text, "proposals_right": proposals, "remarks": list(self.remarks)}

    def to_markdown(self) -> str:
        heads = ("score", "AUC", f"precision at {self.wrong:,}", "at 1 %", "at 5 %")
        rows = []
        for name, area, *shares in self.rows:
            cells = [f"{area:.3f}", *(f"{share:.1%}" for share in shares)]
            rows.append([name, *("-" if "nan" in cell else cell for cell in cells)])
        lines = [self.truth.source, "", *markdown_table(heads, rows)]
        text = f"Of the wrong labels among the top {self.wrong:,}, {self.proposals:.1%} have a correct proposed label."
        if not self.wrong:
            text = "No label is known to be wrong."
        elif math.isnan(self.proposals):
            text = f"No wrong label is among the top {self.wrong:,}."
        return "\n".join([*lines, "", text, *self.remarks])


def score(findings: AuditResult, truth: ReferenceLabels) -> ScoreReport:
    """Evaluate the audit's score, the baselines and confident learning on samples with a reference label."""
    known = truth.known
    wrong = truth.labels[known] != findings.material.labels[known]
    rivals, remarks = confident_learning_scores(findings)
    scores = {"**suspicion**": findings.suspicion}
    scores |= {name: fill_missing(look(findings.evidence)) for name, look in BASELINE_SCORES.items()}
    rows = [evaluate_score(name, values[known], wrong) for name, values in {**scores, **rivals}.items()]
    count = int(wrong.sum())
    first = known[np.argsort(-findings.suspicion[known], kind="stable")[:count]]
    first = first[truth.labels[first] != findings.material.labels[first]]
    right = findings.proposed[first] == truth.labels[first]
    return ScoreReport(truth, len(known), count, rows, float(right.mean()) if len(right) else float("nan"), remarks)


def confident_learning_scores(findings: AuditResult) -> tuple[Mapping[str, Floats], list[str]]:
    """Return confident learning's scores and remarks; no scores if cleanlab is not installed."""
    try:
        from adadf_dist.audit.confident_learning import (
            confident_learning,  # slow to import, and optional
        )
    except ImportError:
        return {}, [NO_CLEANLAB]
    confident = confident_learning(findings.material.labels, findings.evidence.target)
    text = f"It flags {int(confident.issues.sum()):,} labels."
    return {
        "confident learning, label quality": confident.label_quality,
        "confident learning, issues first": confident.score,
    }, [f"{IN_SAMPLE} {text}"]


def evaluate_score(name: str, values: Floats, wrong: NDArray[np.bool_]) -> ScoreRow:
    counts = (int(wrong.sum()), *(max(1, round(share * len(wrong))) for share in (0.01, 0.05)))
    return ScoreRow(name, auc(values, wrong), *(precision_at(values, wrong, k) for k in counts))


def auc(score: Floats, wrong: NDArray[np.bool_]) -> float:
    """Return the probability that a mislabeled sample scores above a correctly labeled one, counting ties half; NaN
    if either group is empty."""
    positive, negative = int(wrong.sum()), int((~wrong).sum())
    if not positive or not negative:
        return float("nan")
    ranks = rankdata(score)
    return float((ranks[wrong].sum() - positive * (positive + 1) / 2) / (positive * negative))


def precision_at(score: Floats, wrong: NDArray[np.bool_], k: int) -> float:
    """Return the fraction of wrong labels among the k highest scores; ties at the cutoff count by their expectation.
    NaN without samples or for k = 0."""
    if not len(score) or not k:
        return float("nan")
    threshold = np.partition(score, len(score) - k)[len(score) - k]
    above, tied = score > threshold, score == threshold
    places = k - int(above.sum())
    return float((wrong[above].sum() + places * wrong[tied].mean()) / k)
