"""Intervals of comparisons against naive recomputations, scipy, and simulated equal configurations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from adadf_dist.metrics.intervals import Score, accuracy_interval, paired_difference
from benchmarks.simulate_verdicts import Case, equal_configurations, measure_rates

FIRST = [0.622, 0.625, 0.634, 0.619]
SECOND = [0.629, 0.624, 0.640, 0.626]
MANY = 10**12
"""Samples of which the sampling noise is nothing."""


def scores(accuracies: list[float], samples: int = MANY) -> list[Score]:
    return [Score(accuracy, samples) for accuracy in accuracies]


def judged(*rows: list[int]) -> list[Score]:
    return [Score(float(np.mean(row)), len(row), np.array(row, dtype=bool)) for row in rows]


def test_intervals_without_sampling_noise_equal_the_paired_t_test() -> None:
    found = paired_difference(scores(FIRST), scores(SECOND))
    test = stats.ttest_rel(SECOND, FIRST)
    wanted = test.confidence_interval(0.95)
    assert found.interval == pytest.approx((wanted.low, wanted.high), abs=1e-5)
    three = paired_difference(scores(FIRST), scores(SECOND), comparisons=3).interval
    wanted = test.confidence_interval(1 - 0.05 / 3)
    assert three == pytest.approx((wanted.low, wanted.high), abs=1e-5)
    single = stats.ttest_1samp(FIRST, 0.0).confidence_interval(0.95)
    assert accuracy_interval(scores(FIRST)) == pytest.approx((single.low, single.high), abs=1e-5)


def test_interval_of_a_difference_is_within_one() -> None:
    """Student's t of two seeds is 12.7: three comparisons of two noisy seeds would reach 175 points."""
    found = paired_difference(scores([0.1, 0.3], 70), scores([0.3, 0.1], 70), comparisons=3)
    assert found.interval == (-1.0, 1.0) and found.verdict == "too few to tell"


def test_tied_seeds_keep_the_sampling_noise() -> None:
    """Two seeds with identical counts, 3 of 69 samples apart: Student's t over seeds alone has width zero."""
    first, second = [0] * 50 + [1] * 19, [0] * 47 + [1] * 22
    found = paired_difference(judged(first, first), judged(second, second))
    assert found.mean == pytest.approx(3 / 69)
    p = 3 / 69
    wanted = 1.959964 * math.sqrt(69 * p * (1 - p) + 1) / 69
    assert found.interval == pytest.approx((p - wanted, p + wanted), rel=1e-5)
    assert found.verdict == "too few to tell"
    assert accuracy_interval(judged(first, first)).low < 19 / 69 - 0.08  # binomial: one standard error is 5.4 points


def test_samples_are_paired_where_predictions_are_known() -> None:
    """Errors on the same samples cancel; without predictions they do not."""
    generator = np.random.default_rng(3)
    hard = generator.random(2000) < 0.4
    rows = [np.where(generator.random(2000) < 0.02, ~hard, hard).astype(int).tolist() for _ in range(6)]
    paired = paired_difference(judged(*rows[:3]), judged(*rows[3:]))
    alone = paired_difference(
        *([score._replace(correct=None) for score in judged(*part)] for part in (rows[:3], rows[3:]))
    )
    assert paired.paired and not alone.paired
    assert alone.mean == pytest.approx(paired.mean)
    widths = [found.interval.high - found.interval.low for found in (paired, alone)]
    assert widths[0] < widths[1] / 2


@pytest.mark.parametrize(("samples", "seeds"), [(69, 2), (69, 5), (400, 3)])
def test_equal_configurations_are_rarely_called_better(samples: int, seeds: int) -> None:
    """In at most one simulated search of twenty; docs/statistics.md has more sizes."""
    for case in equal_configurations(samples, seeds):
        rates = measure_rates(case, 150, seed=1)
        assert max(rates) <= 0.05, case


def test_large_gain_is_found() -> None:
    assert measure_rates(Case(4000, 3, 1, 0.05, 1.0, gain=0.58), 20, seed=1).paired > 0.9


def test_single_pair_is_inconclusive() -> None:
    with pytest.raises(ValueError, match="at least two scores of each"):
        paired_difference(scores([0.1]), scores([0.2]))
