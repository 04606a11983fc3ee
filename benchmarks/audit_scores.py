"""Compare the audit's label error score with baselines and confident learning on known label errors of a run.

This prints the tables of docs/audit.md. Label errors are known if the run was trained with injected noise, or by
comparison with another dataset that has the same images.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from adadf_dist.audit.ranking import AuditResult, score_labels
from adadf_dist.audit.run_data import load_audit_inputs
from adadf_dist.audit.training_dynamics import TrainingDynamics
from adadf_dist.data.identity import ALLOW_OTHER_DATA
from adadf_dist.distributed.world import pick_device
from adadf_dist.errors import UserError
from adadf_dist.files.outputs import write_output
from benchmarks.reference_labels import ReferenceLabels, injected_noise, labels_from_dataset

Floats = NDArray[np.float64]

NO_CLEANLAB = "confident learning skipped: cleanlab is not installed; pip install 'adadf_dist[benchmarks]'"
IN_SAMPLE = (
    "Confident learning uses in-sample predictions here. Its authors recommend out-of-sample predictions from "
    "cross-validation, which would take several runs."
)


def add_options(audit: argparse.ArgumentParser) -> None:
    audit.add_argument("folder", type=Path, metavar="RUN", help="run directory of adadf_dist.train")
    audit.add_argument(
        "--reference-labels",
        type=Path,
        metavar="DIR",
        help="dataset with reference labels of the same photos, such as FER+ for FER2013",
    )
    audit.add_argument(
        "--checkpoint",
        choices=("selected", "last"),
        default="selected",
        help="checkpoint to audit (default: %(default)s)",
    )
    audit.add_argument("--shards", default="", metavar="DIR", help="the run's dataset, if it was moved")
    audit.add_argument(ALLOW_OTHER_DATA, action="store_true", help="accept images that differ from the run's")
    audit.set_defaults(run=bench_audit)


def bench_audit(options: argparse.Namespace) -> None:
    """Print one table per set of reference labels. Raises `UserError` if there is none or the run cannot be audited."""
    folder, which, other = options.folder, options.checkpoint, options.allow_other_data
    moved = {"data.shards": options.shards} if options.shards else {}
    with load_audit_inputs(folder, which, moved, pick_device(), other) as material:
        truths = []
        if options.reference_labels is not None:
            truths.append(labels_from_dataset(material.split, options.reference_labels))
        if material.noisy:
            truths.append(injected_noise(material))
        if not truths:
            raise UserError(f"{folder}: trained without label noise; pass --reference-labels DIR")
        findings = score_labels(material)
        reports = [compare_scores(findings, truth) for truth in truths]
    for report in reports:
        print(report.to_markdown(), end="\n\n")
    if options.json is not None:
        write_output(options.json, [report.to_dict() for report in reports])


class ScoreRow(NamedTuple):
    """Results of one score on one set of reference labels: fractions in [0, 1], or NaN if undefined."""

    name: str
    auc: float
    """Probability that a mislabeled sample scores above a correctly labeled one; a tie counts as half."""
    at_changed: float
    """Precision among the top k samples, where k is the number of wrong labels."""
    at_1: float
    """Precision among the top 1% of the samples."""
    at_5: float
    """Precision among the top 5% of the samples."""


class ScoreReport(NamedTuple):
    truth: ReferenceLabels
    faces: int
    """Number of samples with a reference label."""
    wrong: int
    rows: Sequence[ScoreRow]
    proposals: float
    """Fraction of the wrong labels among the top `wrong` samples whose proposed label is correct. Ties are ranked in
    the order of the split."""
    remarks: Sequence[str]

    def to_dict(self) -> dict[str, object]:
        rows = [{k: None if v != v else v for k, v in row._asdict().items()} for row in self.rows]
        proposals = None if self.proposals != self.proposals else self.proposals
        text = {"truth": self.truth.source, "faces": self.faces, "wrong": self.wrong, "scores": rows}
        return {**text, "proposals_right": proposals, "remarks": list(self.remarks)}

    def to_markdown(self) -> str:
        heads = ("score", "AUC", f"precision at {self.wrong:,}", "at 1 %", "at 5 %")
        lines = [self.truth.source, "", f"| {' | '.join(heads)} |", "|---|--:|--:|--:|--:|"]
        for name, area, *shares in self.rows:
            cells = [f"{area:.3f}", *(f"{share:.1%}" for share in shares)]
            lines.append(f"| {' | '.join([name, *('-' if 'nan' in cell else cell for cell in cells)])} |")
        text = f"Of the wrong labels among the top {self.wrong:,}, {self.proposals:.1%} have a correct proposed label."
        if not self.wrong:
            text = "No label is known to be wrong."
        elif math.isnan(self.proposals):
            text = f"No wrong label is among the top {self.wrong:,}."
        return "\n".join([*lines, "", text, *self.remarks])


def prob_of_label(findings: AuditResult, distributions: Floats) -> Floats:
    """Return the probability [S] of each sample's label in its distribution, a row of `distributions` [S, C]."""
    return distributions[np.arange(len(distributions)), findings.material.labels]


def margin(findings: AuditResult, distributions: Floats) -> Floats:
    """Return [S], the probability of the most probable other class minus the probability of the label."""
    others = distributions.copy()
    others[np.arange(len(others)), findings.material.labels] = -np.inf
    best: Floats = others.max(axis=1)
    return best - prob_of_label(findings, distributions)


def forgetting(traces: TrainingDynamics) -> Floats:
    """Score samples by their number of forgetting events, with never-learned samples highest, as in Toneva et al."""
    return np.where(traces.never_learned, traces.epochs + 1, traces.forgetting_events).astype(np.float64)


def rank_average(*scores: Floats) -> Floats:
    """Return [S], each sample's rank averaged over the scores and scaled to [0, 1]; ties get their average rank."""
    ranks = [(rankdata(fill_missing(score)) - 1) / max(len(score) - 1, 1) for score in scores]
    return np.asarray(np.mean(ranks, axis=0), dtype=np.float64)


def fill_missing(score: Floats) -> Floats:
    """Replace the NaN scores of samples that were never drawn with the median, which is neutral."""
    unknown = np.isnan(score)
    return score if not unknown.any() else np.where(unknown, np.nanmedian(score) if not unknown.all() else 0.0, score)


SCORES: Mapping[str, Callable[[AuditResult], Floats]] = {
    "**suspicion**": lambda f: f.label_error_score,
    "attention, mean": lambda f: -f.material.traces.attention_mean,
    "attention, last epoch": lambda f: -f.material.traces.attention_last,
    "loss, mean": lambda f: f.material.traces.loss_mean,
    "loss, last epoch": lambda f: f.material.traces.loss_last,
    "forgetting": lambda f: forgetting(f.material.traces),
    "share of epochs wrong": lambda f: f.material.traces.wrong,
    "1 - target": lambda f: 1 - prob_of_label(f, f.target),
    "1 - auxiliary": lambda f: 1 - prob_of_label(f, f.auxiliary),
    "KL of the label to fused": lambda f: -np.log(np.maximum(prob_of_label(f, f.material.fused), 1e-12)),
    "margin of target": lambda f: margin(f, f.target),
    "margin of auxiliary": lambda f: margin(f, f.auxiliary),
    "auxiliary disagrees": lambda f: (f.auxiliary.argmax(axis=1) != f.material.labels).astype(np.float64),
    "rank average of loss, mean and suspicion": lambda f: rank_average(
        f.material.traces.loss_mean, f.label_error_score
    ),
    "rank average of share wrong and suspicion": lambda f: rank_average(f.material.traces.wrong, f.label_error_score),
    "rank average of attention, mean and suspicion": lambda f: rank_average(
        -f.material.traces.attention_mean, f.label_error_score
    ),
}
"""Scores by name; a higher value means that the label is more likely wrong.

The KL divergence is that of the label to the fused distribution, because the reverse would be infinite.
"""


def compare_scores(findings: AuditResult, truth: ReferenceLabels) -> ScoreReport:
    """Evaluate all scores on the samples that have a reference label."""
    known = truth.known
    wrong = truth.labels[known] != findings.material.labels[known]
    rivals, remarks = confident_learning(findings)
    scores = {name: fill_missing(compute(findings)) for name, compute in SCORES.items()} | rivals
    rows = [evaluate_score(name, values[known], wrong) for name, values in scores.items()]
    count = int(wrong.sum())
    first = known[np.argsort(-findings.label_error_score[known], kind="stable")[:count]]
    first = first[truth.labels[first] != findings.material.labels[first]]
    right = findings.suggested_label[first] == truth.labels[first]
    return ScoreReport(truth, len(known), count, rows, float(right.mean()) if len(right) else float("nan"), remarks)


def confident_learning(findings: AuditResult) -> tuple[dict[str, Floats], list[str]]:
    """Return scores of confident learning (Northcutt et al., 2021) and remarks; no scores if cleanlab is not installed.

    cleanlab expects out-of-sample predictions from cross-validation. These predictions are in-sample, which is a
    disadvantage for it if the network memorized wrong labels.
    """
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError:
        return {}, [NO_CLEANLAB]
    present, labels = np.unique(findings.material.labels, return_inverse=True)  # cleanlab requires every class
    shown = findings.target[:, present]
    shown = shown / shown.sum(axis=1, keepdims=True)
    quality = 1 - np.asarray(get_label_quality_scores(labels, shown), dtype=np.float64)
    issues = np.asarray(find_label_issues(labels, shown, n_jobs=1), dtype=bool)
    scores = {"confident learning, label quality": quality, "confident learning, issues first": quality + issues}
    return scores, [f"{IN_SAMPLE} It flags {int(issues.sum()):,} labels."]


def evaluate_score(name: str, values: Floats, wrong: NDArray[np.bool_]) -> ScoreRow:
    auc = float(roc_auc_score(wrong, values)) if 0 < wrong.sum() < len(wrong) else float("nan")
    counts = (int(wrong.sum()), *(max(1, round(share * len(wrong))) for share in (0.01, 0.05)))
    return ScoreRow(name, auc, *(precision_at(values, wrong, k) for k in counts))


def precision_at(score: Floats, wrong: NDArray[np.bool_], k: int) -> float:
    """Return the fraction of wrong labels among the k highest scores; NaN without samples or for k = 0.

    Samples tied at the cutoff count with their average fraction of wrong labels.
    """
    if not len(score) or not k:
        return float("nan")
    threshold = np.partition(score, len(score) - k)[len(score) - k]
    above, tied = score > threshold, score == threshold
    places = k - int(above.sum())
    return float((wrong[above].sum() + places * wrong[tied].mean()) / k)
