"""Which configuration wins, and is it significantly better than the default?

Finalists were picked by their accuracy on one seed, which flatters them. So they and the default are trained on seeds
that the search has not used, and compared there, seed by seed and sample by sample. A configuration whose network
collapsed on any of these seeds cannot win.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from adadf_dist.metrics.classification import Interval
from adadf_dist.metrics.comparison import PairedDifference, Score, accuracy_interval, paired_difference
from tune.study.study import Study
from tune.study.trial import DEFAULT


class Candidate(NamedTuple):
    """A configuration on the final seeds; accuracies in [0, 1]."""

    number: int
    accuracies: tuple[float, ...]
    mean: float
    interval: Interval
    """95 %, of the mean, for new seeds and new samples."""
    difference: PairedDifference | None
    """To the default, paired by seed; None for the default itself."""
    mean_class_accuracy: float | None = None
    """Mean over the seeds; None where it was not recorded."""
    collapse: str = ""
    """On which seed the network collapsed, and how; empty where none did."""


class Selection(NamedTuple):
    candidates: tuple[Candidate, ...]
    """The default and the finalists that trained on every seed, best mean first."""
    winner: int
    """The best finalist where it is significantly better than the default, else the default."""

    @property
    def improved(self) -> bool:
        return self.winner != DEFAULT

    @property
    def too_few(self) -> bool:
        """Whether nothing was found, and no comparison was precise enough to find much."""
        verdicts = [c.difference.verdict for c in self.candidates if c.difference is not None and not c.collapse]
        return not self.improved and bool(verdicts) and all(verdict == "too few to tell" for verdict in verdicts)


def select_finalists(study: Study, count: int) -> list[int]:
    """Numbers of the best configurations of the search: the furthest first, then the most accurate.

    Accuracies of trials that were halted at different epochs do not compare, so epochs come first. The default is none
    of them, nor is a configuration that is the default's or another finalist's under a second number.
    """
    searched = [o for o in study.trials.outcomes() if o.trial.stage == "search" and o.end != "failed" and o.epochs]
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
    """Choose between configurations by their validation scores on the same seeds in the same order.

    A finalist is better when the interval of its difference to the default is above 0. The intervals account for seeds
    and samples and are widened for the number of comparisons (Bonferroni): at most one search in twenty finds a
    better configuration among equal ones.
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
