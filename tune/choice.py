"""Which configuration, and is it better than the default beyond noise?

Finalists were found by their accuracy on one seed, which flatters them; so they and the default are trained on seeds
that the search has not seen, and compared there, seed by seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from adadf_dist.comparison import Difference, mean_interval, paired_difference
from adadf_dist.metrics import Interval
from tune.study import Study
from tune.trial import DEFAULT


class Candidate(NamedTuple):
    """A configuration on the final seeds; accuracies in [0, 1]."""

    number: int
    accuracies: tuple[float, ...]
    mean: float
    interval: Interval
    """95 %, of the mean, by Student's t."""
    difference: Difference | None
    """To the default, paired by seed; None for the default itself."""


class Choice(NamedTuple):
    candidates: tuple[Candidate, ...]
    """The default and the finalists that trained on every seed, best mean first."""
    winner: int
    """The best finalist where it is better than the default beyond noise, else the default."""

    @property
    def found(self) -> bool:
        return self.winner != DEFAULT


def finalists(study: Study, count: int) -> list[int]:
    """Numbers of the best configurations of the search: the furthest first, then the most accurate.

    Accuracies of trials that were halted at different epochs do not compare, so epochs come first. The default is none
    of them, nor is a configuration that is the default's or another finalist's under a second number.
    """
    searched = [o for o in study.trials.outcomes() if o.trial.stage == "search" and o.end != "failed" and o.epochs]
    ordered = sorted(searched, key=lambda outcome: (outcome.epochs, outcome.best), reverse=True)
    found: list[int] = []
    seen = [study.values_of(study.default())]
    for outcome in ordered:
        values = study.values_of(outcome.trial)
        if outcome.trial.number != DEFAULT and values not in seen:
            seen.append(values)
            found.append(outcome.trial.number)
    return found[:count]


def choose(accuracies: Mapping[int, Sequence[float]]) -> Choice:
    """From the accuracies of each number on the same seeds in the same order.

    A finalist is better when the interval of its paired difference to the default is above 0; the intervals are widened
    for the number of comparisons (Bonferroni), so that noise wins in one search of twenty at most.
    """
    default = accuracies[DEFAULT]
    comparisons = max(1, len(accuracies) - 1)
    candidates = []
    for number, values in accuracies.items():
        difference = None if number == DEFAULT else paired_difference(default, values, comparisons)
        candidates.append(Candidate(number, tuple(values), fmean(values), mean_interval(values), difference))
    candidates.sort(key=lambda candidate: candidate.mean, reverse=True)
    better = [c.number for c in candidates if c.difference is not None and c.difference.interval.low > 0]
    return Choice(tuple(candidates), better[0] if better else DEFAULT)
