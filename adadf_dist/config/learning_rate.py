"""Learning rate of every step: warmup, schedule, and scaling with the global batch size. Pure functions, no torch."""

from __future__ import annotations

import math
from typing import NamedTuple

from adadf_dist.config.schema import Config, OptimizerConfig

SCALING = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}
"""Exponent applied to the batch-size ratio, for each value of `optimizer.lr_scaling`."""


class Position(NamedTuple):
    """Position of a training step in the run; all counts start at 0."""

    epoch: int
    step: int
    """Number of the step, counted from the start of the run."""
    passed: float
    """Number of epochs that have passed, including the fraction of the current one."""
    steps_per_epoch: int = 0
    """Steps per epoch; 0 if unknown (as with random images), which disables a warmup given as a fraction of the run."""


def learning_rate(config: Config, position: Position) -> float:
    """Return the learning rate of a step. This is a pure function, so there is no state to save or restore."""
    optimizer = config.optimizer
    rate = optimizer.lr * batch_factor(optimizer, config.batch_size, position.passed)
    if warmup := warmup_steps(config, position.steps_per_epoch):
        rate *= min(1.0, (position.step + 1) / warmup)
    if optimizer.schedule == "cosine":
        return rate * (1 + math.cos(math.pi * position.epoch / config.epochs)) / 2
    if optimizer.schedule == "cosine_by_step":
        decay_steps = config.epochs * position.steps_per_epoch - warmup
        passed = max(0, position.step - warmup) / decay_steps if decay_steps > 0 else 0.0
        return rate * (1 + math.cos(math.pi * passed)) / 2
    return rate * optimizer.lr_gamma**position.epoch


def warmup_steps(config: Config, steps_per_epoch: int) -> int:
    """Return the number of warmup steps, from `optimizer.warmup_steps` as a count or as a fraction of the run."""
    warmup = config.optimizer.warmup_steps
    if isinstance(warmup, int):
        return warmup
    return round(warmup * config.epochs * steps_per_epoch)


def batch_factor(config: OptimizerConfig, batch_size: int, passed: float) -> float:
    """Return the learning-rate factor for a global batch size, which ramps up linearly over `scaling_warmup_epochs`.

    `linear`: Goyal et al. 2017, with their gradual warmup. `sqrt`: the rule for Adam of Malladi et al. 2022.
    """
    full = full_batch_factor(config, batch_size)
    if passed >= config.scaling_warmup_epochs:
        return full
    return 1 + (full - 1) * passed / config.scaling_warmup_epochs


def full_batch_factor(config: OptimizerConfig, batch_size: int) -> float:
    """Return the learning-rate factor for a global batch size once `scaling_warmup_epochs` have passed."""
    return math.pow(batch_size / config.base_batch_size, SCALING[config.lr_scaling])
