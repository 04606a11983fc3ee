"""Who goes on, who wins: against SciPy, Ray's own halving, and searches in which nothing matters."""

from __future__ import annotations

from typing import Any

import numpy as np
from ray.tune.schedulers.async_hyperband import _Bracket
from scipy import stats

from tune.choice import choose
from tune.halving import Halving
from tune.trial import DEFAULT


def test_noise_wins_in_one_search_of_twenty() -> None:
    """Of searches in which all configurations are alike, at most 5 % find one that is better than the default."""
    generator = np.random.default_rng(0)
    found = sum(choose({n: generator.normal(0.6, 0.01, 5) for n in range(4)}).found for _ in range(2000))
    assert found / 2000 < 0.05
    alone = sum(choose({n: generator.normal(0.6, 0.01, 5) for n in range(2)}).found for _ in range(2000))
    assert 0.01 < alone / 2000 < 0.04  # one side of a 95 % interval


def test_differences_are_those_of_a_paired_t_test() -> None:
    generator = np.random.default_rng(1)
    default, other = generator.normal(0.6, 0.02, 6), generator.normal(0.62, 0.02, 6)
    candidate = next(c for c in choose({DEFAULT: default, 1: other}).candidates if c.number == 1)
    paired = stats.ttest_rel(other, default).confidence_interval(0.95)
    assert candidate.difference is not None
    np.testing.assert_allclose(candidate.difference.interval, (paired.low, paired.high))
    single = stats.ttest_1samp(other, 0.0).confidence_interval(0.95)
    np.testing.assert_allclose(candidate.interval, (single.low, single.high))
    three = next(c for c in choose({DEFAULT: default, 1: other, 2: other, 3: other}).candidates if c.number == 1)
    paired = stats.ttest_rel(other, default).confidence_interval(1 - 0.05 / 3)
    assert three.difference is not None
    np.testing.assert_allclose(three.difference.interval, (paired.low, paired.high))


def test_halving_decides_as_rays_own_scheduler() -> None:
    """Accuracies that come to a rung in turn, each trial to the next rung as long as it passes."""
    generator = np.random.default_rng(2)
    for factor in (2, 3, 4):
        halving = Halving(grace=2, factor=factor, epochs=200)
        bracket = _Bracket(2, 199, factor, 0)
        reached: dict[int, list[float]] = {rung: [] for rung in halving.rungs}
        ended = 0
        for number in range(60):
            trial: Any = type("Trial", (), {"trial_id": str(number)})()
            for rung in halving.rungs:
                accuracy = float(generator.normal())
                passes = halving.passes(accuracy, reached[rung])
                reached[rung].append(accuracy)
                assert (bracket.on_result(trial, rung, accuracy) == "CONTINUE") == passes
                if not passes:
                    ended += 1
                    break
        assert ended > 20
