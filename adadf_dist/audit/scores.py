"""Label error scores: the one used by the audit, and baselines.

The score was selected by comparing all of them on known noise: see the table in docs/audit.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from adadf_dist.audit.training_dynamics import TrainingDynamics

Floats = NDArray[np.float64]


class SampleEvidence(NamedTuple):
    """Evidence on S samples, C classes."""

    labels: NDArray[np.int64]
    traces: TrainingDynamics
    target: Floats
    """[S, C]"""
    auxiliary: Floats
    """[S, C]"""
    fused: Floats
    """[S, C]"""

    @property
    def mean_probs(self) -> Floats:
        """[S, C], mean of both branches."""
        return (self.target + self.auxiliary) / 2

    def prob_of_label(self, distributions: Floats) -> Floats:
        """Return the probability of the label [S] in the distributions [S, C]."""
        return distributions[np.arange(len(self.labels)), self.labels]

    def margin(self, distributions: Floats) -> Floats:
        """Return the probability of the best other class minus that of the label [S]."""
        others = distributions.copy()
        others[np.arange(len(self.labels)), self.labels] = -np.inf
        best: Floats = others.max(axis=1)
        return best - self.prob_of_label(distributions)


def forgetting(traces: TrainingDynamics) -> Floats:
    """Score never-learned samples highest, as in Toneva et al., then by number of forgetting events."""
    return np.where(traces.never_learnt, traces.epochs + 1, traces.forgotten).astype(np.float64)


def label_error_score(evidence: SampleEvidence) -> Floats:
    """Return the label error score [S] in [0, 1]: 1 minus the label's mean probability over both branches."""
    return 1 - evidence.prob_of_label(evidence.mean_probs)


def suggest_labels(evidence: SampleEvidence) -> NDArray[np.int64]:
    """Return the most likely class by the mean of both branches [S]; the label itself if they agree with it."""
    best: NDArray[np.int64] = evidence.mean_probs.argmax(axis=1).astype(np.int64)
    return best


BASELINE_SCORES: Mapping[str, Callable[[SampleEvidence], Floats]] = {
    "attention, mean": lambda e: -e.traces.attention_mean,
    "attention, last epoch": lambda e: -e.traces.attention_last,
    "loss, mean": lambda e: e.traces.loss_mean,
    "loss, last epoch": lambda e: e.traces.loss_last,
    "forgetting": lambda e: forgetting(e.traces),
    "share of epochs wrong": lambda e: e.traces.wrong,
    "1 - target": lambda e: 1 - e.prob_of_label(e.target),
    "1 - auxiliary": lambda e: 1 - e.prob_of_label(e.auxiliary),
    "KL of the label to fused": lambda e: -np.log(np.maximum(e.prob_of_label(e.fused), 1e-12)),
    "margin of target": lambda e: e.margin(e.target),
    "margin of auxiliary": lambda e: e.margin(e.auxiliary),
    "auxiliary disagrees": lambda e: (e.auxiliary.argmax(axis=1) != e.labels).astype(np.float64),
    "rank average of loss, mean and suspicion": lambda e: rank_average(e.traces.loss_mean, label_error_score(e)),
    "rank average of share wrong and suspicion": lambda e: rank_average(e.traces.wrong, label_error_score(e)),
    "rank average of attention, mean and suspicion": lambda e: rank_average(
        -e.traces.attention_mean, label_error_score(e)
    ),
}
"""Higher: more likely mislabeled. (The KL divergence of fused from the label would be infinite.)"""


def rank_average(*scores: Floats) -> Floats:
    """Return the mean normalized rank of each sample over the scores [S] in [0, 1]; ties get their average rank."""
    ranks = [(rankdata(fill_missing(score)) - 1) / max(len(score) - 1, 1) for score in scores]
    return np.asarray(np.mean(ranks, axis=0), dtype=np.float64)


def fill_missing(score: Floats) -> Floats:
    """Replace NaN (samples that were never sampled) by the median, which is neutral."""
    unknown = np.isnan(score)
    return score if not unknown.any() else np.where(unknown, np.nanmedian(score) if not unknown.all() else 0.0, score)
