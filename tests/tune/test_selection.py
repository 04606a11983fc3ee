"""Halving and selection against SciPy, Ray's scheduler, and searches in which nothing matters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ray.tune.schedulers.async_hyperband import _Bracket
from scipy import stats

from adadf_dist.metrics.intervals import Score
from tune.report.results import conclude, describe
from tune.study.asha import AshaSchedule
from tune.study.scores import find_collapse
from tune.study.selection import select_winner
from tune.study.trial import DEFAULT, Trial, TrialResult

MANY = 10**12
"""Samples of which the sampling noise is nothing."""


def scores(accuracies: Sequence[float], samples: int = MANY) -> list[Score]:
    return [Score(float(accuracy), samples) for accuracy in accuracies]


def test_noise_wins_at_most_one_search_in_twenty() -> None:
    """Of searches in which all configurations are equal, at most 5 % find one better than the default."""
    generator = np.random.default_rng(0)
    found = sum(
        select_winner({n: scores(generator.normal(0.6, 0.01, 5)) for n in range(4)}).improved for _ in range(2000)
    )
    assert found / 2000 < 0.05
    alone = sum(
        select_winner({n: scores(generator.normal(0.6, 0.01, 5)) for n in range(2)}).improved for _ in range(2000)
    )
    assert 0.01 < alone / 2000 < 0.04  # one side of a 95 % interval


def test_intervals_are_corrected_for_multiple_comparisons() -> None:
    generator = np.random.default_rng(1)
    default, other = generator.normal(0.6, 0.02, 6), generator.normal(0.62, 0.02, 6)
    runs = {DEFAULT: scores(default), **dict.fromkeys((1, 2, 3), scores(other))}
    candidate = next(c for c in select_winner(runs).candidates if c.number == 1)
    paired = stats.ttest_rel(other, default).confidence_interval(1 - 0.05 / 3)
    assert candidate.difference is not None
    np.testing.assert_allclose(candidate.difference.interval, (paired.low, paired.high), atol=1e-5)


def test_collapsed_network_cannot_win() -> None:
    runs = {DEFAULT: scores([0.2, 0.21, 0.2]), 1: scores([0.5, 0.51, 0.5]), 2: scores([0.4, 0.41, 0.4])}
    assert select_winner(runs).winner == 1
    collapse = "seed 1: 99% of the samples are predicted as neutral"
    choice = select_winner(runs, {1: collapse})
    assert choice.winner == 2
    assert f"configuration 1 collapsed ({collapse}), so it cannot win" in describe(choice)
    assert select_winner({DEFAULT: runs[DEFAULT], 1: runs[1]}, {1: collapse}).winner == DEFAULT


def test_few_samples_and_tied_seeds_are_inconclusive() -> None:
    """22 of 69 samples against 19, the same on both seeds: once wrongly called better beyond noise."""
    choice = select_winner({DEFAULT: scores([19 / 69] * 2, 69), 1: scores([22 / 69] * 2, 69)})
    assert choice.winner == DEFAULT
    assert describe(choice)[0].startswith("too few seeds or samples to tell")
    assert "2 seeds and 69 validation samples" in describe(choice)[0]
    assert conclude(choice) == "too few seeds or samples to tell whether a configuration is better than the default"
    close = select_winner({DEFAULT: scores([0.6, 0.61, 0.6]), 1: scores([0.601, 0.611, 0.599])})
    assert describe(close)[0].startswith("no configuration is significantly better")


def test_collapse_is_found_in_the_selected_epoch() -> None:
    """68 of 69 samples are predicted as one class."""
    confusion = [[0] * 7 for _ in range(7)]
    for row in range(7):
        confusion[row][6] = 10 if row < 6 else 8
    confusion[0][0], confusion[0][6] = 1, 9
    selected = {"accuracy": 9 / 69, "mean_class_accuracy": 0.16, "samples": 69, "confusion": confusion}
    outcome = TrialResult(Trial(1, 3, "final", {}), "finished", "", (9 / 69,), selected)
    assert "predicted as neutral" in find_collapse(outcome, [*"abcdef", "neutral"])
    even = [[8 if row == column else 1 for column in range(7)] for row in range(7)]
    fine = {**selected, "mean_class_accuracy": 8 / 14, "confusion": even}
    assert not find_collapse(TrialResult(Trial(1, 3, "final", {}), "finished", "", (0.5,), fine), [*"abcdefg"])


def test_halving_equals_rays_scheduler() -> None:
    """Accuracies reach a rung one after another, each trial going on to the next rung as long as it passes."""
    generator = np.random.default_rng(2)
    for factor in (2, 3, 4):
        halving = AshaSchedule(grace=2, factor=factor, epochs=200)
        bracket = _Bracket(2, 199, factor, 0)
        reached: dict[int, list[float]] = {rung: [] for rung in halving.rungs}
        ended = 0
        for number in range(60):
            trial: Any = type("Trial", (), {"trial_id": str(number)})()
            for rung in halving.rungs:
                accuracy = float(generator.normal())
                passes = halving.survives(accuracy, reached[rung])
                reached[rung].append(accuracy)
                assert (bracket.on_result(trial, rung, accuracy) == "CONTINUE") == passes
                if not passes:
                    ended += 1
                    break
        assert ended > 20
