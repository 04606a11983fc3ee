"""Select the winning configuration and test whether it is significantly better than the default.

Finalists are selected by their accuracy on one seed, which is optimistically biased. So they and the default are
retrained on held-out seeds and compared there, paired by seed and sample. A configuration whose network collapsed on
any of these seeds cannot win.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from adadf_dist.metrics.intervals import Interval, PairedDifference, Score, accuracy_interval, paired_difference
from tune.study.study import Study
from tune.study.trial import DEFAULT


class Candidate(NamedTuple):
    """Results of a configuration on the held-out seeds, with accuracies in [0, 1]."""

    number: int
    accuracies: tuple[float, ...]
    mean: float
    interval: Interval
    """95% confidence interval of the mean, accounting for variation between seeds and between samples."""
    difference: PairedDifference | None
    """Difference from the default, paired by seed; None for the default itself."""
    mean_class_accuracy: float | None = None
    """Mean class accuracy averaged over the seeds; None if it was not recorded."""
    collapse: str = ""
    """Description of how the network collapsed, and on which seeds; empty if it never did."""


class Selection(NamedTuple):
    candidates: tuple[Candidate, ...]
    """The default and the finalists that trained on every seed, best mean first."""
    winner: int
    """Configuration number of the best finalist that is significantly better than the default; `DEFAULT` if none is."""

    @property
    def improved(self) -> bool:
        return self.winner != DEFAULT

    @property
    def too_few(self) -> bool:
        """Whether no finalist won and no comparison was precise enough to rule out an improvement."""
        verdicts = [c.difference.verdict for c in self.candidates if c.difference is not None and not c.collapse]
        return not self.improved and bool(verdicts) and all(verdict == "too few to tell" for verdict in verdicts)


def select_finalists(study: Study, count: int) -> list[int]:
    """Return the configuration numbers of the `count` best search trials, ranked by epochs completed, then by accuracy.

    Epochs come first because accuracies after different numbers of epochs are not comparable. The default and
    duplicate configurations are excluded.
    """
    searched = [o for o in study.trials.outcomes() if o.trial.stage == "search" and o.status != "failed" and o.epochs]
    ordered = sorted(searched, key=lambda outcome: (outcome.epochs, outcome.best), reverse=True)
    found: list[int] = []
    seen = [study.full_values(study.default())]
    for outcome in ordered:
        values = study.full_values(outcome.trial)
        if outcome.trial.number != DEFAULT and values not in seen:
            seen.append(values)
            found.append(outcome.trial.number)
    return found[:count]


def select_winner(
    scores: Mapping[int, Sequence[Score]],
    collapses: Mapping[int, str] | None = None,
    class_accuracies: Mapping[int, float | None] | None = None,
) -> Selection:
    """Select the winner by validation scores, given for every configuration on the same seeds in the same order.

    A finalist is better if the interval of its difference from the default is above 0. The intervals account for seeds
    and samples and are widened for the number of comparisons (Bonferroni): if all configurations are equal, at most
    one search in twenty reports a better one.
    """
    collapses, class_accuracies = collapses or {}, class_accuracies or {}
    default = scores[DEFAULT]
    comparisons = max(1, len(scores) - 1)
    candidates = []
    for number, runs in scores.items():
        difference = None if number == DEFAULT else paired_difference(default, runs, comparisons)
        accuracies = tuple(score.accuracy for score in runs)
        about = class_accuracies.get(number), collapses.get(number, "")
        candidates.append(Candidate(number, accuracies, fmean(accuracies), accuracy_interval(runs), difference, *about))
    candidates.sort(key=lambda candidate: candidate.mean, reverse=True)
    better = [
        candidate.number
        for candidate in candidates
        if candidate.difference is not None and candidate.difference.verdict == "better" and not candidate.collapse
    ]
    return Selection(tuple(candidates), better[0] if better else DEFAULT)
