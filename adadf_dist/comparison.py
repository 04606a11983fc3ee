"""Two ways of training, compared seed by seed: what differs, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

from scipy import stats

from adadf_dist.metrics import Interval


class Difference(NamedTuple):
    """Of pairs, second minus first, in the unit of the values."""

    mean: float
    interval: Interval
    """95 %, by Student's t over the pairs."""
    equivalence: Interval
    """90 %: inside a margin on both sides, it shows equivalence at 5 % (two one-sided tests, Schuirmann 1987)."""

    def within(self, margin: float) -> bool:
        """Whether the two are equivalent up to `margin`. False may also mean: too few pairs to say."""
        return -margin < self.equivalence.low and self.equivalence.high < margin


def paired_difference(first: Sequence[float], second: Sequence[float], comparisons: int = 1) -> Difference:
    """At least two pairs of equal conditions (the same seed); raises `ValueError` for fewer.

    Of several `comparisons` made at once, all intervals hold together at their level (Bonferroni).
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"{len(first)} and {len(second)} values make no pairs to compare; give two or more of each")
    differences = [b - a for a, b in zip(first, second, strict=True)]
    interval, equivalence = (mean_interval(differences, 1 - (1 - level) / comparisons) for level in (0.95, 0.9))
    return Difference(fmean(differences), interval, equivalence)


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Of the mean of at least two values, by Student's t."""
    mean, error = fmean(values), stdev(values) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * error
    return Interval(mean - half, mean + half)
