"""Find settings that do not suit the length of a run, before the run starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from adadf_dist.config.learning_rate import Position, batch_factor, full_batch_factor, learning_rate, warmup_steps
from adadf_dist.config.schema import Config
from adadf_dist.findings import Finding, warning

MOST_WARMUP = 1 / 3
"""Maximum length of a warm-up, or of the horizon of weight averaging, as a fraction of the run."""
WARMUP = 0.05
"""Suggested warm-up, as a fraction of the run."""
NEGLIGIBLE_RATE = 1e-3
"""Fraction of `optimizer.lr` below which a learning rate has almost no effect."""
INTERVALS = {
    "checkpoint.save_every_steps": "no checkpoint is saved by steps, only at the end of each epoch and by time",
    "runtime.stop_check_steps": "a stop signal and checkpoints by time take effect only at the end of an epoch",
    "runtime.log_every_steps": "losses are logged and checked only at the end of each epoch",
}
"""Maps each setting that is an interval in steps to the effect of a run that is shorter than the interval."""


class Length(NamedTuple):
    """Length of a run."""

    epochs: int
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def __str__(self) -> str:
        return f"{self.steps:,} steps ({self.epochs:,} x {self.steps_per_epoch:,})"


def find_problems(config: Config, steps_per_epoch: int) -> list[Finding]:
    """Return a warning for each setting that does not suit a run of `config.epochs` times `steps_per_epoch` steps."""
    length = Length(config.epochs, steps_per_epoch)
    return [problem for rule in RULES for problem in rule(config, length)]


def find_long_warmup(config: Config, length: Length) -> Iterator[Finding]:
    """Yield a warning if the warm-up takes more than a third of the run."""
    warmup = warmup_steps(config, length.steps_per_epoch)
    if warmup <= MOST_WARMUP * length.steps:
        return
    key = f"optimizer.warmup_steps = {config.optimizer.warmup_steps:g}"
    if warmup > length.steps:
        text = f"{key} is more than the run's {length}"
    else:
        text = f"{key} takes {warmup / length.steps:.0%} of the run's {length}"
    full = full_batch_factor(config.optimizer, config.batch_size)
    peak = peak_learning_rate(config, length.steps_per_epoch) / (config.optimizer.lr * full)
    yield warning(
        "optimizer.warmup_steps",
        f"{text}: the learning rate reaches at most {100 * peak:.{0 if peak >= 0.01 else 1}f}% of "
        + ("optimizer.lr" if full == 1 else f"optimizer.lr times {full:.3g}, the batch-size factor"),
        f"set optimizer.warmup_steps = {WARMUP:g} (a fraction of the run), or train longer",
    )


def find_long_scaling(config: Config, length: Length) -> Iterator[Finding]:
    """Yield a warning if the batch-size factor (`optimizer.lr_scaling`) warms up for more than a third of the run."""
    optimizer = config.optimizer
    full = full_batch_factor(optimizer, config.batch_size)
    if full == 1 or optimizer.scaling_warmup_epochs <= MOST_WARMUP * length.epochs:
        return
    reached = batch_factor(optimizer, config.batch_size, length.epochs - 1 / length.steps_per_epoch)
    yield warning(
        "optimizer.scaling_warmup_epochs",
        f"optimizer.scaling_warmup_epochs = {optimizer.scaling_warmup_epochs:g} is more than a third of the run's "
        f"{length.epochs} epochs: the batch-size factor on the learning rate ends at {reached:.2f}, and its full value "
        f"is {full:.2f}",
        f"set optimizer.scaling_warmup_epochs = {length.epochs / 10:g}, or train longer",
    )


def find_late_threshold(config: Config, length: Length) -> Iterator[Finding]:
    """Yield a warning if the run does not reach the epoch threshold E (eq 15, 16)."""
    threshold = config.loss.epoch_threshold
    if threshold <= length.epochs or config.loss.is_baseline:
        return
    yield warning(
        "loss.epoch_threshold",
        f"loss.epoch_threshold = {threshold} is beyond the run's {length.epochs} epochs: the target branch's loss "
        "never gets full weight (eq 15), and the auxiliary branch's loss never decays (eq 16)",
        f"set loss.epoch_threshold to {length.epochs}{' or less' if length.epochs > 1 else ''}, or train longer",
    )


def find_long_average(config: Config, length: Length) -> Iterator[Finding]:
    """Yield a warning if the horizon of weight averaging is more than a third of the run."""
    decay = config.optimizer.ema_decay
    if not decay or 1 / (1 - decay) <= MOST_WARMUP * length.steps:
        return
    shorter = 1 - float(f"{10 / length.steps:.1g}")
    yield warning(
        "optimizer.ema_decay",
        f"optimizer.ema_decay = {decay:g} averages the weights over about {1 / (1 - decay):,.0f} steps, but the whole "
        f"run is only {length}: at the end, the initial weights still make up {decay**length.steps:.0%} of the average",
        f"set optimizer.ema_decay = {shorter:g} or less" if shorter >= 0.5 else "set optimizer.ema_decay = 0 (off)",
    )


def find_large_batch(config: Config, length: Length) -> Iterator[Finding]:
    """Yield a warning if the batch is as large as the training split, so that an epoch is a single step."""
    if length.steps_per_epoch > 1:
        return
    yield warning(
        "batch_size",
        f"batch_size = {config.batch_size} is at least the number of samples per epoch, so each epoch is a single "
        f"step and the run has only {length.steps:,} in total",
        "lower batch_size",
    )


def find_long_intervals(config: Config, length: Length) -> Iterator[Finding]:
    """Yield a warning for each interval longer than the run, except defaults, which are harmless in a short run."""
    defaults = Config()
    for key, effect in INTERVALS.items():
        section, _, name = key.partition(".")
        steps = getattr(getattr(config, section), name)
        if steps != getattr(getattr(defaults, section), name) and steps > length.steps:
            fix = f"set {key} to {length.steps_per_epoch}{' or less' if length.steps_per_epoch > 1 else ''}"
            yield warning(key, f"{key} = {steps} is more than the run's {length}: {effect}", fix)


def find_vanishing_rate(config: Config, length: Length) -> Iterator[Finding]:
    """Yield a warning if the exponential schedule's learning rate is negligible for at least half of the run."""
    gamma = config.optimizer.lr_gamma
    if config.optimizer.schedule != "exponential":
        return
    first = next((epoch for epoch in range(length.epochs) if gamma**epoch < NEGLIGIBLE_RATE), length.epochs)
    if first > length.epochs / 2:
        return
    enough = NEGLIGIBLE_RATE ** (1 / length.epochs)
    yield warning(
        "optimizer.lr_gamma",
        f"optimizer.lr_gamma = {gamma:g} puts the learning rate below {NEGLIGIBLE_RATE:.1%} of optimizer.lr from epoch "
        f"{first + 1} of {length.epochs} on, so about half of the run or more has almost no effect",
        f"set optimizer.lr_gamma = {enough:.2f} or optimizer.schedule = cosine, or train for at most {2 * first - 1} "
        "epochs",
    )


def peak_learning_rate(config: Config, steps_per_epoch: int) -> float:
    """Return the highest learning rate at the first and last step of each epoch and at the end of the warmup."""
    steps = {epoch * steps_per_epoch + batch for epoch in range(config.epochs) for batch in (0, steps_per_epoch - 1)}
    steps |= {step for step in (warmup_steps(config, steps_per_epoch),) if step < config.epochs * steps_per_epoch}
    return max(
        learning_rate(config, Position(step // steps_per_epoch, step, step / steps_per_epoch, steps_per_epoch))
        for step in steps
    )


def fix_divergence(config: Config, steps_per_epoch: int) -> str:
    """Return text that suggests a longer warm-up after a non-finite loss; "" if the warm-up is already long."""
    if warmup_steps(config, steps_per_epoch) >= WARMUP * config.epochs * steps_per_epoch:
        return ""
    return f", or optimizer.warmup_steps = {2 * WARMUP:g} (a fraction of the run)"


RULES: tuple[Callable[[Config, Length], Iterator[Finding]], ...] = (
    find_large_batch,
    find_long_warmup,
    find_long_scaling,
    find_late_threshold,
    find_long_average,
    find_long_intervals,
    find_vanishing_rate,
)
