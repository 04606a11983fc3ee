"""Asynchronous successive halving (ASHA, Li et al. 2020): at each rung, keep the best 1/`factor` of trials.

The decision depends only on the recorded results, so the same rule works for sequential trials, trials on a Ray
cluster and resumed searches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adadf_dist.config.schema import Config
from adadf_dist.errors import UserError
from tune.study.space import Space

GRACE = 2
"""Minimum grace period, as a multiple of the largest epoch threshold E, because the target loss ramps up until E."""


@dataclass(frozen=True)
class AshaSchedule:
    """Schedule of rungs: epochs at which poor trials are pruned. They are `grace`, `grace` x `factor`, and so on."""

    grace: int
    """Grace period: the number of epochs that every trial completes."""
    factor: int
    """Reduction factor: about 1 in `factor` trials continues past a rung."""
    epochs: int
    """Number of epochs of a trial that is not pruned."""

    @property
    def rungs(self) -> list[int]:
        rungs, rung = [], self.grace
        while rung < self.epochs:
            rungs.append(rung)
            rung *= self.factor
        return rungs

    def survives(self, accuracy: float, others: Sequence[float]) -> bool:
        """Return whether a trial continues past a rung, given the accuracies of other trials that reached it."""
        return not others or accuracy >= float(np.percentile(others, 100 * (1 - 1 / self.factor)))


def plan_halving(space: Space, base: Config, grace: int | None, factor: int) -> AshaSchedule:
    """Return the schedule of rungs. Raises `UserError` if the grace period is too short or the factor is below 2."""
    largest = int(space.largest("loss.epoch_threshold", base))
    least = GRACE * largest
    if grace is None:
        grace = least
    if grace < least:
        raise UserError(
            f"--grace-period {grace}: must be at least {least}, twice the largest loss.epoch_threshold ({largest}); "
            "pruning earlier is unfair to trials whose losses are still ramping up (eqs 15, 16)"
        )
    if factor < 2:
        raise UserError(f"--reduction-factor {factor}: must be at least 2; a factor of N keeps about 1 in N trials")
    return AshaSchedule(grace, factor, base.epochs)
