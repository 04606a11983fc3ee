"""Asynchronous successive halving (ASHA, Li et al. 2020): at its rungs, a trial below the best of those before ends.

Its answer depends on the records that trials leave behind and on nothing else, so one rule serves trials in a row,
trials on a Ray cluster, and a search that was interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adadf_dist.config.schema import Config
from adadf_dist.errors import UserError
from tune.study.space import Space

GRACE = 2
"""Grace in largest epoch thresholds: until E the target branch's loss is ramped in, until 2E it can show for it."""


@dataclass(frozen=True)
class AshaSchedule:
    """Rungs at `grace`, `grace` x `factor`, ... epochs."""

    grace: int
    """Epochs that every trial has."""
    factor: int
    """One trial in so many passes a rung."""
    epochs: int
    """Of a whole trial."""

    @property
    def rungs(self) -> list[int]:
        rungs, rung = [], self.grace
        while rung < self.epochs:
            rungs.append(rung)
            rung *= self.factor
        return rungs

    def survives(self, accuracy: float, others: Sequence[float]) -> bool:
        """Whether a trial goes on from a rung, by the accuracies of those that came there before it."""
        return not others or accuracy >= float(np.percentile(others, 100 * (1 - 1 / self.factor)))


def plan_halving(space: Space, base: Config, grace: int | None, factor: int) -> AshaSchedule:
    """Raises `UserError` for a grace period in which a large epoch threshold cannot show what it is worth."""
    largest = int(space.largest("loss.epoch_threshold", base))
    least = GRACE * largest
    if grace is None:
        grace = least
    if grace < least:
        raise UserError(
            f"--grace {grace}: loss.epoch_threshold goes up to {largest}, and before epoch {least} such a trial is "
            f"still ramping its losses (eqs 15, 16) and would be ended for being slow; give {least} or more"
        )
    if factor < 2:
        raise UserError(f"--factor {factor}: give 2 or more, for one trial in so many passes a rung")
    return AshaSchedule(grace, factor, base.epochs)
