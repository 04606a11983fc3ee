"""Comparisons of two configurations, with intervals that cover both sources of noise: seeds and evaluated samples.

Runs of k seeds are evaluated on the same n samples, so seeds and samples are crossed random effects. The variance of a
mean over both is estimated in two parts, as in the analysis of crossed random effects (Owen, 2007, *The pigeonhole
bootstrap*):

    V_seed   = variance of the k per-seed values / k
    V_sample = variance of the n per-sample values / n

Their sum counts the interaction of seeds and samples twice, so it errs on the safe side. Each part has its own degrees
of freedom, hence half-width^2 = t(k - 1)^2 V_seed + z^2 V_sample. `benchmarks/simulate_verdicts.py` measures how often
these intervals call equal configurations different (docs/statistics.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from adadf_dist.metrics.classification import Interval

RESOLUTION = 0.05
"""Half-width of an interval above which a comparison that found nothing is called too small to tell."""
Verdict = Literal["better", "worse", "not significant", "too few to tell"]


class Score(NamedTuple):
    """One run on one split."""

    accuracy: float
    """In [0, 1]."""
    samples: int
    correct: NDArray[np.bool_] | None = None
    """[samples], in the order of the split; None where the run kept no predictions."""


class PairedDifference(NamedTuple):
    """Mean accuracy of the second configuration minus that of the first, over seeds that both have."""

    mean: float
    """In [-1, 1], as are the ends of the intervals."""
    interval: Interval
    """95 %, two-sided."""
    equivalence: Interval
    """90 %: inside a margin on both sides, it shows equivalence at 5 % (two one-sided tests, Schuirmann 1987)."""
    seeds: int
    samples: int
    paired: bool
    """Whether the samples were paired; without predictions of both runs the interval is wider than it need be."""

    def is_equivalent(self, margin: float) -> bool:
        """Whether the two are equivalent up to `margin`. False may also mean: too few pairs to tell."""
        return -margin < self.equivalence.low and self.equivalence.high < margin

    @property
    def verdict(self) -> Verdict:
        if self.interval.low > 0:
            return "better"
        if self.interval.high < 0:
            return "worse"
        wide = (self.interval.high - self.interval.low) / 2 > RESOLUTION
        return "too few to tell" if wide else "not significant"


def paired_difference(first: Sequence[Score], second: Sequence[Score], comparisons: int = 1) -> PairedDifference:
    """Compare two configurations seed by seed and, where predictions were kept, sample by sample.

    Args:
        first, second: at least two scores each, in the same order of seeds, on the same split.
        comparisons: number of comparisons made at once; the intervals hold together at their level (Bonferroni).

    Raises:
        ValueError: for fewer than two pairs.
    """
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(f"{len(first)} and {len(second)} scores make no pairs to compare; give two or more of each")
    differences = np.array([b.accuracy - a.accuracy for a, b in zip(first, second, strict=True)])
    samples = min(score.samples for score in (*first, *second))
    mean = float(differences.mean())
    both = stack_correct(first), stack_correct(second)
    if both[0] is not None and both[1] is not None and both[0].shape == both[1].shape:
        paired, sampling = True, paired_variance(both[1] - both[0])
    else:
        paired, sampling = False, unpaired_variance(first) + unpaired_variance(second)
    seed = float(differences.var(ddof=1)) / len(differences)
    interval, equivalence = (
        Interval(max(-1.0, mean - half), min(1.0, mean + half))
        for level in (0.95, 0.9)
        for half in [half_width(seed, sampling, len(differences), 1 - (1 - level) / comparisons)]
    )
    return PairedDifference(mean, interval, equivalence, len(differences), samples, paired)


def accuracy_interval(scores: Sequence[Score]) -> Interval:
    """95 % interval of the mean accuracy over at least two seeds, for new seeds and new samples."""
    values = np.array([score.accuracy for score in scores])
    mean, seed = float(values.mean()), float(values.var(ddof=1)) / len(values)
    half = half_width(seed, unpaired_variance(scores), len(values), 0.95)
    return Interval(max(0.0, mean - half), min(1.0, mean + half))


def stack_correct(scores: Sequence[Score]) -> NDArray[np.float64] | None:
    """[seeds, samples], 1 where a run's prediction is right; None unless every run kept its predictions."""
    rows = [score.correct for score in scores if score.correct is not None]
    if len(rows) < len(scores) or len({len(row) for row in rows}) > 1:
        return None
    return np.stack(rows).astype(np.float64)


def paired_variance(differences: NDArray[np.float64]) -> float:
    """Sampling variance of the mean of [seeds, samples] differences, each in {-1, 0, 1}.

    Half a sample won by either side is added, which keeps the interval honest where few samples differ (Agresti and
    Min, 2005, for one seed; of its own accord the variance of no difference at all would be zero).
    """
    per_sample = differences.mean(axis=0)
    squares = float(((per_sample - per_sample.mean()) ** 2).sum()) + 1
    return squares / len(per_sample) ** 2


def unpaired_variance(scores: Sequence[Score]) -> float:
    """Upper bound on the sampling variance of a mean accuracy over seeds: binomial, as if all seeds agreed.

    The share is pulled to 1/2 by two samples of each kind (Agresti and Coull, 1998), so that it is never zero.
    """
    samples = min(score.samples for score in scores)
    share = (float(np.mean([score.accuracy for score in scores])) * samples + 2) / (samples + 4)
    return share * (1 - share) / samples


def half_width(seed_variance: float, sample_variance: float, seeds: int, level: float) -> float:
    """Half the width of a two-sided interval: Student's t for the seeds, the normal quantile for the samples."""
    t, z = two_sided_quantiles(seeds - 1, level)
    return math.sqrt(t**2 * seed_variance + z**2 * sample_variance)


@cache
def two_sided_quantiles(degrees: int, level: float) -> tuple[float, float]:
    """Of Student's t and of the normal distribution. Kept: scipy takes longer for them than all else here takes."""
    return float(stats.t.ppf((1 + level) / 2, degrees)), float(stats.norm.ppf((1 + level) / 2))
