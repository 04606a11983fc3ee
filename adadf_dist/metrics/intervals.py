"""Confidence intervals for a fraction, for a mean over seeds and samples, and for the difference of two configurations.

Runs with k seeds are evaluated on the same n samples, so seeds and samples are crossed random effects. The variance of
a mean over both is estimated in two parts (Owen, 2007, *The pigeonhole bootstrap*):

    V_seed   = variance of the k per-seed values / k
    V_sample = variance of the n per-sample values / n

Their sum counts the seed-sample interaction twice, so it is conservative. Each part has its own degrees of freedom:
half-width^2 = t(k - 1)^2 V_seed + z^2 V_sample. `benchmarks/simulate_verdicts.py` measures how often these intervals
report equal configurations as different (docs/statistics.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Z95 = 1.959963984540054
"""Two-sided 95% quantile of the normal distribution."""


class Interval(NamedTuple):
    low: float
    high: float


RESOLUTION = 0.05
"""Half-width of an interval above which a non-significant comparison is reported as "too few to tell"."""
Verdict = Literal["better", "worse", "not significant", "too few to tell"]


class Score(NamedTuple):
    """Result of one run on one split."""

    accuracy: float
    """Accuracy of the run, in [0, 1]."""
    samples: int
    correct: NDArray[np.bool_] | None = None
    """[samples], whether each prediction is correct, in split order; None if the run saved no predictions."""


class PairedDifference(NamedTuple):
    """Mean accuracy of the second configuration minus the first, over the seeds that both have."""

    mean: float
    """Mean difference in accuracy, in [-1, 1], as are the bounds of the interval."""
    interval: Interval
    """Two-sided 95% interval."""
    seeds: int
    samples: int
    paired: bool
    """Whether samples were paired. This requires predictions of every run; without it, the interval is wider."""

    @property
    def verdict(self) -> Verdict:
        if self.interval.low > 0:
            return "better"
        if self.interval.high < 0:
            return "worse"
        wide = (self.interval.high - self.interval.low) / 2 > RESOLUTION
        return "too few to tell" if wide else "not significant"


def paired_difference(first: Sequence[Score], second: Sequence[Score], comparisons: int = 1) -> PairedDifference:
    """Compare two configurations, paired by seed and, if predictions were saved, by sample.

    Args:
        first, second: At least two scores each, in the same seed order, on the same split.
        comparisons: Number of simultaneous comparisons; the intervals are Bonferroni-corrected.

    Raises:
        ValueError: With fewer than two pairs.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"cannot pair {len(first)} scores with {len(second)}; pass at least two scores of each")
    differences = np.array([b.accuracy - a.accuracy for a, b in zip(first, second, strict=True)])
    samples = min(score.samples for score in (*first, *second))
    mean = float(differences.mean())
    both = stack_correct(first), stack_correct(second)
    if both[0] is not None and both[1] is not None and both[0].shape == both[1].shape:
        paired, sampling = True, paired_variance(both[1] - both[0])
    else:
        paired, sampling = False, unpaired_variance(first) + unpaired_variance(second)
    seed = float(differences.var(ddof=1)) / len(differences)
    half = half_width(seed, sampling, len(differences), 1 - 0.05 / comparisons)
    interval = Interval(max(-1.0, mean - half), min(1.0, mean + half))
    return PairedDifference(mean, interval, len(differences), samples, paired)


def accuracy_interval(scores: Sequence[Score]) -> Interval:
    """Return a 95% interval of the mean accuracy over at least two seeds, covering seed and sampling variance."""
    values = np.array([score.accuracy for score in scores])
    mean, seed = float(values.mean()), float(values.var(ddof=1)) / len(values)
    half = half_width(seed, unpaired_variance(scores), len(values), 0.95)
    return Interval(max(0.0, mean - half), min(1.0, mean + half))


def stack_correct(scores: Sequence[Score]) -> NDArray[np.float64] | None:
    """Return an array [seeds, samples], 1 where a prediction is correct; None unless every run saved predictions."""
    rows = [score.correct for score in scores if score.correct is not None]
    if len(rows) < len(scores) or len({len(row) for row in rows}) > 1:
        return None
    return np.stack(rows).astype(np.float64)


def paired_variance(differences: NDArray[np.float64]) -> float:
    """Return the sampling variance of the mean of [seeds, samples] differences, each in {-1, 0, 1}.

    Adds half a sample in favor of each configuration, which preserves coverage when few samples differ (Agresti and
    Min, 2005, for one seed). Without this, the variance would be zero when no sample differs.
    """
    per_sample = differences.mean(axis=0)
    squares = float(((per_sample - per_sample.mean()) ** 2).sum()) + 1
    return squares / len(per_sample) ** 2


def unpaired_variance(scores: Sequence[Score]) -> float:
    """Return an upper bound on the sampling variance of a mean accuracy: that of a binomial, as if all seeds agreed.

    Adds two successes and two failures (Agresti and Coull, 1998), so the variance is never zero.
    """
    samples = min(score.samples for score in scores)
    fraction = (float(np.mean([score.accuracy for score in scores])) * samples + 2) / (samples + 4)
    return fraction * (1 - fraction) / samples


def half_width(seed_variance: float, sample_variance: float, seeds: int, level: float) -> float:
    """Return half the width of a two-sided interval, with Student's t for seeds and a normal quantile for samples."""
    t, z = two_sided_quantiles(seeds - 1, level)
    return math.sqrt(t**2 * seed_variance + z**2 * sample_variance)


@cache
def two_sided_quantiles(degrees: int, level: float) -> tuple[float, float]:
    """Return the quantiles of Student's t and of the normal distribution. Cached, because scipy is slow."""
    return float(stats.t.ppf((1 + level) / 2, degrees)), float(stats.norm.ppf((1 + level) / 2))


def wilson_interval(correct: int, total: int) -> Interval:
    """Return the 95% Wilson interval (Wilson, 1927) of a fraction; it always lies within [0, 1]."""
    fraction, z2 = correct / total, Z95**2
    center = (fraction + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 / (1 + z2 / total) * math.sqrt(fraction * (1 - fraction) / total + z2 / (4 * total**2))
    # the bounds for 0 and `total` are exact; rounding would miss them slightly
    return Interval(0.0 if correct == 0 else center - half, 1.0 if correct == total else center + half)
