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


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """At least two pairs of equal conditions (the same seed); raises `ValueError` for fewer."""
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"{len(first)} and {len(second)} values make no pairs to compare; give two or more of each")
    differences = [b - a for a, b in zip(first, second, strict=True)]
    mean, error = fmean(differences), stdev(differences) / math.sqrt(len(differences))

    def interval(level: float) -> Interval:
        half = float(stats.t.ppf((1 + level) / 2, len(differences) - 1)) * error
        return Interval(mean - half, mean + half)

    return Difference(mean, interval(0.95), interval(0.9))
