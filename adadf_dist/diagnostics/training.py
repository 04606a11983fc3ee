"""Rules about training: attention, the loader, the auxiliary branch, replaced samples and overfitting."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from adadf_dist.config.schema import Config
from adadf_dist.diagnostics.finding import RunRecords, either
from adadf_dist.findings import Finding, Severity

MIN_ATTENTION_STD = 0.05
"""Minimum standard deviation of attention weights, as a fraction of their range [lambda_min, 1]."""
WAITING, WAITING_LONG = 0.1, 0.3
"""Fractions of an epoch spent waiting for data that trigger an info and a warning."""
RISING, RISE = 3, 1.1
"""The auxiliary branch diverges if its cross entropy rises `RISING` epochs in a row to `RISE` times its minimum."""
MAX_AUXILIARY_GAP = 0.1
"""Accuracy gap to the target branch above which the auxiliary branch is reported as behind."""
AUXILIARY_LAGS = "auxiliary branch behind"
BAD_FRACTION = 0.1
"""Fraction of `data.max_bad_samples` at which the samples replaced in an epoch trigger a warning."""
OVERFIT_SIGMAS = 2.0
"""Number of standard errors above which a difference in accuracy is significant."""
OVERFIT_WINDOW = 3
"""Number of epochs averaged to detect overfitting."""
LOWEST_FACTOR = 0.001
"""Do not suggest lowering `optimizer.attention_lr_mult` if it is already at or below this value."""


def why_no_attention_rule(run: RunRecords) -> str | None:
    """Return why attention cannot be checked; "" if it can, None if the run does not use attention."""
    if run.config.loss.supervision != "fused":
        return None
    if run.epoch <= run.config.loss.epoch_threshold:
        return f"checked from epoch {run.config.loss.epoch_threshold + 1} on"
    return "not recorded by this version" if run.newest.get("attention") is None else run.too_early


def find_flat_attention(run: RunRecords) -> Iterator[Finding]:
    """Find nearly constant attention weights w': eq 12 then fuses every sample in the same proportion."""
    spread, loss = run.newest["attention"], run.config.loss
    if spread["std"] < MIN_ATTENTION_STD * (1 - loss.lambda_min):
        yield Finding(
            "attention saturated",
            Severity.WARNING,
            f"attention weights w' are {spread['mean']:.3f} with a standard deviation of {spread['std']:.3f} "
            f"over the samples, in a range of {loss.lambda_min:g} to 1",
            fix_attention(run.config),
        )


def fix_attention(config: Config) -> str:
    """Return a fix for nearly constant attention weights."""
    loss, factor = config.loss, config.optimizer.attention_lr_mult
    if not factor:
        return "set optimizer.attention_lr_mult = 0.02: the attention heads are not trained (now 0)"
    if loss.lambda_min == 1:
        return "lower loss.lambda_min: at 1 (the current value) the weights are constant"
    if loss.rank_ratio in (0, 1):
        return f"set loss.rank_ratio = 0.7: at {loss.rank_ratio:g} rank regularization (eq 9) is always 0"
    lower = f"set optimizer.attention_lr_mult = {factor / 10:g} (now {factor:g})"
    margin = min(1.0, 2 * loss.rank_margin or 0.07)
    raised = f"set loss.rank_margin = {margin:g} (now {loss.rank_margin:g})" if loss.rank_margin < 1 else ""
    fixes = either(lower if factor > LOWEST_FACTOR else "", raised)
    return fixes or f"lower optimizer.lr (now {config.optimizer.lr:g})"


def why_no_waiting_rule(run: RunRecords) -> str:
    """Return why waiting for data cannot be checked; "" if it can. In the first epoch, workers are still starting."""
    if run.newest.get("data_wait_fraction") is None:
        return "not recorded by this version"
    return "checked from epoch 2 on" if len(run.records) < 2 else ""


def find_loader_waiting(run: RunRecords) -> Iterator[Finding]:
    """Find training that waits for the data loader."""
    waiting, data = run.newest["data_wait_fraction"], run.config.data
    if waiting < WAITING:
        return
    workers = f"data.num_workers = {max(2, 2 * data.num_workers)} (now {data.num_workers}) if CPU cores are idle"
    dali = "data.loader = dali (needs NVIDIA DALI)" if data.loader != "dali" and data.access == "cache" else ""
    yield Finding(
        "waiting for the loader",
        Severity.WARNING if waiting >= WAITING_LONG else Severity.INFO,
        f"{waiting:.0%} of the epoch was spent waiting for data",
        f"try {either(workers, dali)}",
    )


def why_no_diverging_rule(run: RunRecords) -> str | None:
    """Return why the auxiliary branch's loss cannot be checked; "" if it can, None if the run has no such branch."""
    if run.config.loss.is_baseline:
        return None
    return "" if len(run.records) > RISING else f"checked from epoch {RISING + 1} on"


def find_diverging(run: RunRecords) -> Iterator[Finding]:
    """Find a rising cross entropy of the auxiliary branch, which produces the label distributions."""
    losses = [record["cross_entropy"] for record in run.records]
    lowest, tail = min(losses), losses[-RISING - 1 :]
    if not all(a < b for a, b in pairwise(tail)) or tail[-1] < RISE * lowest:
        return
    yield Finding(
        "auxiliary branch diverging",
        Severity.WARNING,
        f"the branch's cross entropy rose {RISING} epochs in a row, from a minimum of {lowest:.3f} to {tail[-1]:.3f}",
        either(f"lower optimizer.lr (now {run.config.optimizer.lr:g})", fix_pull(run.config)),
    )


def fix_pull(config: Config) -> str:
    """Suggest stopping the gradient that reaches the auxiliary branch through the fused targets F, if there is one."""
    pulled = config.loss.supervision in ("fused", "label") and not config.loss.detach_targets
    return "set loss.detach_targets = true" if pulled else ""


def find_behind(config: Config, target: float, auxiliary: float, samples: int) -> Iterator[Finding]:
    """Find an auxiliary branch whose validation accuracy is far, and significantly, below the target branch's."""
    error = math.sqrt((target * (1 - target) + auxiliary * (1 - auxiliary)) / samples)
    if target - auxiliary <= max(MAX_AUXILIARY_GAP, OVERFIT_SIGMAS * error):
        return
    threshold = config.loss.epoch_threshold
    later = f"set loss.epoch_threshold = {min(2 * threshold, config.epochs)} (now {threshold})"
    yield Finding(
        AUXILIARY_LAGS,
        Severity.WARNING,
        f"the auxiliary branch is correct on {auxiliary:.1%} of {samples:,} validation samples, but the target branch "
        f"on {target:.1%}",
        either(later if threshold < config.epochs else "", fix_pull(config)) or "train longer (raise epochs)",
    )


def find_replaced(run: RunRecords) -> Iterator[Finding]:
    """Find samples that failed to decode."""
    count = run.newest.get("num_replaced_samples", 0)
    if count:
        yield Finding(
            "replaced samples",
            Severity.WARNING if count >= BAD_FRACTION * run.config.data.max_bad_samples else Severity.INFO,
            f"{count} training samples failed to decode in this epoch and were replaced by others of their class",
            "find them with python -m shards.verify on data.shards, then rebuild the dataset",
        )


def why_no_overfitting_rule(run: RunRecords) -> str:
    """Return why overfitting cannot be checked, or "" if it can."""
    return "" if len(run.records) >= 2 * OVERFIT_WINDOW else f"checked from epoch {2 * OVERFIT_WINDOW} on"


def find_overfitting(run: RunRecords) -> Iterator[Finding]:
    """Find validation accuracy significantly below its best while the target branch's training loss has fallen.

    Compares means over `OVERFIT_WINDOW` epochs, because the best of many single epochs is biased upward.
    """
    records, config = run.records, run.config
    name = "cross_entropy" if config.loss.is_baseline else "kl_divergence"
    best = max(records, key=lambda record: float(record["validation"]["accuracy"]))
    accuracies = np.array([record["validation"]["accuracy"] for record in records])
    means = np.convolve(accuracies, np.ones(OVERFIT_WINDOW) / OVERFIT_WINDOW, mode="valid")
    newest, top = float(means[-1]), float(means.max())
    error = math.sqrt(2 * top * (1 - top) / run.newest["validation"]["samples"])
    if top - newest <= OVERFIT_SIGMAS * error or run.newest[name] >= best[name]:
        return
    yield Finding(
        "overfitting",
        Severity.INFO,
        f"validation accuracy {newest:.1%} over the last {OVERFIT_WINDOW} epochs, {100 * (top - newest):.1f} points "
        f"below its best {OVERFIT_WINDOW} epochs, while training loss fell from {best[name]:.3f} to "
        f"{run.newest[name]:.3f}",
        f"epoch {best['epoch']} remains selected; try {fix_overfitting(config)}",
    )


def fix_overfitting(config: Config) -> str:
    """Suggest stronger augmentation, if possible, or more weight decay."""
    augment, highest = config.augment, 30 if config.augment.policy == "torchvision" else 10
    stronger = ""
    if augment.policy == "none":
        stronger = "augment.policy = paper"
    elif augment.num_ops == 0:
        stronger = "augment.num_ops = 1"
    elif augment.magnitude < highest:
        stronger = f"augment.magnitude = {min(augment.magnitude + 2, highest):g}"
    return either(stronger, f"optimizer.weight_decay = {2 * config.optimizer.weight_decay or 1e-4:g}")
