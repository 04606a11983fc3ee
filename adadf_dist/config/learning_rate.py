"""The learning rate of every step: warm-up, schedule, and scaling by the global batch. Pure, no torch."""

from __future__ import annotations

import math
from typing import NamedTuple

from adadf_dist.config.schema import Config, OptimizerConfig

SCALING = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}
"""`optimizer.lr_scaling` -> power of the ratio of batch sizes."""


class Position(NamedTuple):
    """When a step is. All counted from 0."""

    epoch: int
    step: int
    """Over the whole run."""
    passed: float
    """Epochs gone by, fractions included."""
    steps_per_epoch: int = 0
    """0: not known, as in steps on random images; a warm-up given as a fraction of the run is then left out."""


def learning_rate(config: Config, position: Position) -> float:
    """Learning rate of a step. A pure function: nothing to save or restore."""
    optimizer = config.optimizer
    rate = optimizer.lr * batch_factor(optimizer, config.batch_size, position.passed)
    if warmup := warmup_steps(config, position.steps_per_epoch):
        rate *= min(1.0, (position.step + 1) / warmup)
    if optimizer.schedule == "cosine":
        return rate * (1 + math.cos(math.pi * position.epoch / config.epochs)) / 2
    return rate * optimizer.gamma**position.epoch


def warmup_steps(config: Config, steps_per_epoch: int) -> int:
    """Number of warm-up steps: `optimizer.warmup_steps`, or where that is a fraction, its part of the run's steps."""
    warmup = config.optimizer.warmup_steps
    if isinstance(warmup, int):
        return warmup
    return round(warmup * config.epochs * steps_per_epoch)


def batch_factor(config: OptimizerConfig, batch_size: int, passed: float) -> float:
    """Factor on the rate for a global batch: from 1 in a straight line to its full value in `scaling_warmup` epochs.

    Linear: Goyal et al. 2017, with their gradual warm-up. Root: the rule for Adam of Malladi et al. 2022.
    """
    full = full_batch_factor(config, batch_size)
    if passed >= config.scaling_warmup:
        return full
    return 1 + (full - 1) * passed / config.scaling_warmup


def full_batch_factor(config: OptimizerConfig, batch_size: int) -> float:
    """Factor on the rate once the warm-up of `optimizer.lr_scaling` is over."""
    return math.pow(batch_size / config.scaling_from, SCALING[config.lr_scaling])
