"""Compute hyperparameter importance by fANOVA (Hutter et al. 2014), using Optuna."""

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
"""Minimum number of trials needed to compute importance. With fewer, the random forest would fit noise."""
MIN_TRIALS_PER_KEY = 10
"""Number of trials per hyperparameter below which importances are only a rough indication."""


class Importance(NamedTuple):
    trials: int
    """Number of trials used: all but the default and those with a value that an axis cannot show (0 if logarithmic)."""
    shares: dict[str, float]
    """For each key, its fraction of the variance explained by single keys, largest first; empty if not computed."""
    refused: str = ""
    """Reason why importance was not computed; empty if it was."""

    @property
    def few(self) -> bool:
        return self.trials < MIN_TRIALS_PER_KEY * len(self.shares)


def importance(study: Study, compared: MatchedResults) -> Importance:
    """Compute importance from comparable trials. The random forest is seeded, so the result is deterministic."""
    axes = axes_of(study)
    sampled = []
    for outcome, accuracy in zip(compared.outcomes, compared.accuracies, strict=True):
        values = study.full_values(outcome.trial)
        positions = {axis.key: axis.coordinate(values[axis.key]) for axis in axes}
        if outcome.trial.number != DEFAULT and all(map(math.isfinite, positions.values())):
            sampled.append((positions, accuracy))
    refused = unavailable_reason(axes, [accuracy for _, accuracy in sampled])
    if refused:
        return Importance(len(sampled), {}, refused)
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # suppress the log of the temporary study
    temporary = optuna.create_study(direction="maximize")
    distributions = {axis.key: distribution(axis) for axis in axes}
    for positions, accuracy in sampled:
        temporary.add_trial(optuna.create_trial(params=positions, distributions=distributions, value=accuracy))
    shares = get_param_importances(temporary, evaluator=FanovaImportanceEvaluator(seed=0))
    return Importance(len(sampled), dict(sorted(shares.items(), key=lambda item: item[1], reverse=True)))


def unavailable_reason(axes: Sequence[Axis], accuracies: Sequence[float]) -> str:
    """Return why importance cannot be computed from these trials, or an empty string if it can."""
    if len(axes) == 1:
        return f"the space has only one hyperparameter, {axes[0].key}"
    if len(accuracies) < MIN_TRIALS:
        return f"needs at least {MIN_TRIALS} comparable trials, found {len(accuracies)}"
    if max(accuracies) == min(accuracies):
        return "all trials have the same accuracy"
    return ""


def distribution(axis: Axis) -> BaseDistribution:
    """Return Optuna's distribution of an axis's coordinates, which are logarithms if the axis is logarithmic."""
    if axis.scale == "steps":
        return CategoricalDistribution([axis.coordinate(value) for value in axis.values])
    return FloatDistribution(*axis.limits)
