"""How much of the difference in accuracy each constant accounts for: fANOVA (Hutter et al. 2014), by Optuna."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from tune.report.axes import Axis, axes_of
from tune.study.comparable import MatchedResults
from tune.study.study import Study
from tune.study.trial import DEFAULT

MIN_TRIALS = 10
"""Trials; with fewer, a forest of trees finds an order in noise."""
MIN_TRIALS_PER_KEY = 10
"""Trials a constant; with fewer, shares are a hint at most."""


class Importance(NamedTuple):
    trials: int
    """Drawn from the space, and with a place on every axis: the default was not drawn, and is left out."""
    shares: dict[str, float]
    """Of the variance that constants account for one by one, the largest first, 1 in all; empty when refused."""
    refused: str = ""
    """Why there are no shares."""

    @property
    def few(self) -> bool:
        return self.trials < MIN_TRIALS_PER_KEY * len(self.shares)


def importance(study: Study, compared: MatchedResults) -> Importance:
    """From trials that compare. The forest's draws are seeded: the same trials, the same shares."""
    axes = axes_of(study)
    drawn = []
    for outcome, accuracy in zip(compared.outcomes, compared.accuracies, strict=True):
        values = study.full_values(outcome.trial)
        positions = {axis.key: axis.coordinate(values[axis.key]) for axis in axes}
        if outcome.trial.number != DEFAULT and all(map(math.isfinite, positions.values())):
            drawn.append((positions, accuracy))
    refused = unavailable_reason(axes, [accuracy for _, accuracy in drawn])
    if refused:
        return Importance(len(drawn), {}, refused)
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # else it announces a study that nobody asked for
    seen = optuna.create_study(direction="maximize")
    distributions = {axis.key: distribution(axis) for axis in axes}
    for positions, accuracy in drawn:
        seen.add_trial(optuna.create_trial(params=positions, distributions=distributions, value=accuracy))
    shares = get_param_importances(seen, evaluator=FanovaImportanceEvaluator(seed=0))
    return Importance(len(drawn), dict(sorted(shares.items(), key=lambda item: item[1], reverse=True)))


def unavailable_reason(axes: Sequence[Axis], accuracies: Sequence[float]) -> str:
    """Why these trials have no importance to tell; empty if they have."""
    if len(axes) == 1:
        return f"the space has one constant, {axes[0].key}: there is nothing to weigh it against"
    if len(accuracies) < MIN_TRIALS:
        return f"it takes {MIN_TRIALS} trials that compare, and there are {len(accuracies)}"
    if max(accuracies) == min(accuracies):
        return "all trials have the same accuracy"
    return ""


def distribution(axis: Axis) -> BaseDistribution:
    """Of positions, so that a logarithmic axis is weighed evenly over its decades, as it was drawn."""
    if axis.scale == "steps":
        return CategoricalDistribution([axis.coordinate(value) for value in axis.values])
    return FloatDistribution(*axis.limits)
