"""How well scores find labels that are known to be wrong: one table of the audit's score and its rivals."""

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

Floats = NDArray[np.float64]

NO_CLEANLAB = "confident learning is left out: cleanlab is not installed; pip install 'adadf_dist[audit]'"
IN_SAMPLE = (
    "Confident learning judges by the predictions of the network that was trained on these faces. Its authors ask for "
    "out-of-sample predictions, by cross-validation, which would take several runs."
)


class ScoreRow(NamedTuple):
    """One score on one truth. Shares in [0, 1]; NaN where they are not defined."""

    name: str
    auc: float
    at_changed: float
    """Precision among as many faces as have a wrong label."""
    at_1: float
    """Among 1 % of the faces."""
    at_5: float


class ScoreReport(NamedTuple):
    truth: ReferenceLabels
    faces: int
    """That the truth is known of."""
    wrong: int
    rows: Sequence[ScoreRow]
    proposals: float
    """Of the wrong labels among the `wrong` most suspicious faces, the share whose proposed label is the true one. Of
    faces that tie for the last places the earlier in the split count."""
    remarks: Sequence[str]

    def to_dict(self) -> dict[str, object]:
        rows = [{k: None if v != v else v for k, v in row._asdict().items()} for row in self.rows]
        proposals = None if self.proposals != self.proposals else self.proposals
        told = {"truth": self.truth.source, "faces": self.faces, "wrong": self.wrong, "scores": rows}
        return {**told, "proposals_right": proposals, "remarks": list(self.remarks)}

    def to_markdown(self) -> str:
        heads = ("score", "AUC", f"precision at {self.wrong:,}", "at 1 %", "at 5 %")
        lines = [self.truth.source, "", f"| {' | '.join(heads)} |", "|---|--:|--:|--:|--:|"]
        for name, area, *shares in self.rows:
            cells = [f"{area:.3f}", *(f"{share:.1%}" for share in shares)]
            lines.append(f"| {' | '.join([name, *('-' if 'nan' in cell else cell for cell in cells)])} |")
        told = f"Of the wrong labels among the {self.wrong:,} most suspicious, {self.proposals:.1%} are proposed right."
        if not self.wrong:
            told = "No label is known to be wrong, so there is nothing to find."
        elif math.isnan(self.proposals):
            told = f"No wrong label is among the {self.wrong:,} most suspicious."
        return "\n".join([*lines, "", told, *self.remarks])


def score(findings: AuditResult, truth: ReferenceLabels) -> ScoreReport:
    """The audit's suspicion beside its rivals and confident learning, on the faces that count."""
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
    """Confident learning's scores, and what is to be said of them; none where cleanlab is missing."""
    try:
        from adadf_dist.audit.confident_learning import (
            confident_learning,  # takes a second to import, and not everyone has it
        )
    except ImportError:
        return {}, [NO_CLEANLAB]
    confident = confident_learning(findings.material.labels, findings.evidence.target)
    told = f"It names {int(confident.issues.sum()):,} issues."
    return {
        "confident learning, label quality": confident.label_quality,
        "confident learning, issues first": confident.score,
    }, [f"{IN_SAMPLE} {told}"]


def evaluate_score(name: str, values: Floats, wrong: NDArray[np.bool_]) -> ScoreRow:
    counts = (int(wrong.sum()), *(max(1, round(share * len(wrong))) for share in (0.01, 0.05)))
    return ScoreRow(name, auc(values, wrong), *(precision_at(values, wrong, k) for k in counts))


def auc(score: Floats, wrong: NDArray[np.bool_]) -> float:
    """Probability that a wrongly labelled face scores above a rightly labelled one, ties counting half; NaN where
    there is none of either."""
    positive, negative = int(wrong.sum()), int((~wrong).sum())
    if not positive or not negative:
        return float("nan")
    ranks = rankdata(score)
    return float((ranks[wrong].sum() - positive * (positive + 1) / 2) / (positive * negative))


def precision_at(score: Floats, wrong: NDArray[np.bool_], k: int) -> float:
    """Share of wrong labels among the k highest scores; of faces that tie for the last places, as many as would be
    expected of a draw. NaN without faces, and of none."""
    if not len(score) or not k:
        return float("nan")
    threshold = np.partition(score, len(score) - k)[len(score) - k]
    above, tied = score > threshold, score == threshold
    places = k - int(above.sum())
    return float((wrong[above].sum() + places * wrong[tied].mean()) / k)
