"""Rules on training: attention, the loader, the auxiliary branch, replaced samples, overfitting."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from adadf_dist.config.schema import Config
from adadf_dist.diagnostics.finding import Finding, RunRecords, Severity, either

MIN_ATTENTION_STD = 0.05
"""Attention weights whose standard deviation is a smaller fraction of their range [lambda_min, 1] are all alike."""
WAITING, WAITING_LONG = 0.1, 0.3
"""Fractions of an epoch spent waiting for the loader: worth a note, worth a warning."""
RISING, RISE = 3, 1.1
"""The auxiliary branch diverges: its cross entropy rose so many epochs in a row, to so many times its lowest."""
MAX_AUXILIARY_GAP = 0.1
"""An auxiliary branch whose accuracy is so far below the target branch's is a poor teacher."""
AUXILIARY_LAGS = "auxiliary branch behind"
BAD_FRACTION = 0.1
"""Of `data.max_bad_faces`: replaced samples of an epoch that are worth a warning."""
OVERFIT_SIGMAS = 2.0
"""Standard errors of a difference beyond which an accuracy is lower than another."""
OVERFIT_WINDOW = 3
"""Epochs that are averaged to judge overfitting."""
LOWEST_FACTOR = 0.001
"""`optimizer.attention_lr_factor` below which lowering it further is no advice."""


def why_no_attention_rule(run: RunRecords) -> str | None:
    """Why attention is not judged; None where it is not used, empty where it is judged."""
    if run.config.loss.supervision != "fused":
        return None
    if run.epoch <= run.config.loss.epoch_threshold:
        return f"judged from epoch {run.config.loss.epoch_threshold + 1} on"
    return "not recorded by this version" if run.newest.get("attention") is None else run.too_early


def find_flat_attention(run: RunRecords) -> Iterator[Finding]:
    """Attention weights w' that are all alike: eq 12 then fuses every sample in the same proportion."""
    spread, loss = run.newest["attention"], run.config.loss
    if spread["deviation"] < MIN_ATTENTION_STD * (1 - loss.lambda_min):
        yield Finding(
            "attention saturated",
            Severity.WARNING,
            f"attention weights w' are {spread['mean']:.3f} with a standard deviation of {spread['deviation']:.3f} "
            f"over the samples, in a range of {loss.lambda_min:g} to 1",
            fix_attention(run.config),
        )


def fix_attention(config: Config) -> str:
    """Advice for attention weights that are all alike."""
    loss, factor = config.loss, config.optimizer.attention_lr_factor
    if not factor:
        return "set optimizer.attention_lr_factor = 0.02: the attention heads are not trained (now 0)"
    if loss.lambda_min == 1:
        return "lower loss.lambda_min (now 1), which leaves the weights no range"
    if loss.rank_ratio in (0, 1):
        return f"set loss.rank_ratio = 0.7: at {loss.rank_ratio:g} rank regularization (eq 9) is always 0"
    lower = f"set optimizer.attention_lr_factor = {factor / 10:g} (now {factor:g})"
    margin = min(1.0, 2 * loss.rank_margin or 0.07)
    raised = f"set loss.rank_margin = {margin:g} (now {loss.rank_margin:g})" if loss.rank_margin < 1 else ""
    return (
        either(lower if factor > LOWEST_FACTOR else "", raised) or f"lower optimizer.lr (now {config.optimizer.lr:g})"
    )


def why_no_waiting_rule(run: RunRecords) -> str:
    """Why waiting is not judged; empty where it is. The first epoch of a run also starts its workers."""
    if run.newest.get("waiting") is None:
        return "not recorded by this version"
    return "judged from epoch 2 on" if len(run.records) < 2 else ""


def find_loader_waiting(run: RunRecords) -> Iterator[Finding]:
    """Training that waits for its loader."""
    waiting, data = run.newest["waiting"], run.config.data
    if waiting < WAITING:
        return
    workers = f"data.workers = {max(2, 2 * data.workers)} (now {data.workers}) where cores are idle"
    dali = "data.loader = dali (needs NVIDIA DALI)" if data.loader != "dali" and data.access == "cache" else ""
    yield Finding(
        "waiting for the loader",
        Severity.WARNING if waiting >= WAITING_LONG else Severity.NOTE,
        f"{waiting:.0%} of the epoch was spent waiting for the loader",
        f"try {either(workers, dali)}",
    )


def why_no_diverging_rule(run: RunRecords) -> str | None:
    """Why the auxiliary branch's loss is not judged; None without that branch, empty where it is judged."""
    if run.config.loss.supervision == "one_hot":
        return None
    return "" if len(run.records) > RISING else f"judged from epoch {RISING + 1} on"


def find_diverging(run: RunRecords) -> Iterator[Finding]:
    """Cross entropy of the auxiliary branch, which gives the label distributions, rising over epochs."""
    losses = [record["cross_entropy"] for record in run.records]
    lowest, tail = min(losses), losses[-RISING - 1 :]
    if not all(a < b for a, b in pairwise(tail)) or tail[-1] < RISE * lowest:
        return
    yield Finding(
        "auxiliary branch diverging",
        Severity.WARNING,
        f"its cross entropy rose {RISING} epochs in a row, to {tail[-1]:.3f} from {lowest:.3f} at its lowest",
        either(f"lower optimizer.lr (now {run.config.optimizer.lr:g})", fix_pull(run.config)),
    )


def fix_pull(config: Config) -> str:
    """Advice against the gradient that reaches the auxiliary branch through F, where there is one."""
    pulled = config.loss.supervision in ("fused", "label") and not config.loss.detach
    return "set loss.detach = true" if pulled else ""


def find_behind(config: Config, target: float, auxiliary: float, samples: int) -> Iterator[Finding]:
    """An auxiliary branch whose validation accuracy is far below the target branch's, beyond noise."""
    error = math.sqrt((target * (1 - target) + auxiliary * (1 - auxiliary)) / samples)
    if target - auxiliary <= max(MAX_AUXILIARY_GAP, OVERFIT_SIGMAS * error):
        return
    threshold = config.loss.epoch_threshold
    later = f"set loss.epoch_threshold = {min(2 * threshold, config.epochs)} (now {threshold})"
    yield Finding(
        AUXILIARY_LAGS,
        Severity.WARNING,
        f"it is correct on {auxiliary:.1%} of {samples:,} validation samples, the target branch on {target:.1%}",
        either(later if threshold < config.epochs else "", fix_pull(config)) or "train longer (raise epochs)",
    )


def why_no_replaced_rule(run: RunRecords) -> str:
    """Replaced samples are always judged."""
    return ""


def find_replaced(run: RunRecords) -> Iterator[Finding]:
    """Samples that no longer decode."""
    count = run.newest.get("replaced_faces", 0)
    if count:
        yield Finding(
            "replaced samples",
            Severity.WARNING if count >= BAD_FRACTION * run.config.data.max_bad_faces else Severity.NOTE,
            f"{count} training samples of the epoch did not decode and were replaced by others of their class",
            "find them with python -m shards.verify on data.shards, and build it again",
        )


def why_no_overfitting_rule(run: RunRecords) -> str:
    """Why overfitting is not judged; empty where it is."""
    return "" if len(run.records) >= 2 * OVERFIT_WINDOW else f"judged from epoch {2 * OVERFIT_WINDOW} on"


def find_overfitting(run: RunRecords) -> Iterator[Finding]:
    """Validation accuracy significantly below its best while the target branch's training loss kept falling.

    Both are means over `OVERFIT_WINDOW` epochs: the best single epoch of many is lucky, and the newest may be unlucky.
    """
    records, config = run.records, run.config
    name = "cross_entropy" if config.loss.supervision == "one_hot" else "kl_divergence"
    best = max(records, key=lambda record: float(record["validation"]["accuracy"]))
    accuracies = np.array([record["validation"]["accuracy"] for record in records])
    means = np.convolve(accuracies, np.ones(OVERFIT_WINDOW) / OVERFIT_WINDOW, mode="valid")
    newest, top = float(means[-1]), float(means.max())
    error = math.sqrt(2 * top * (1 - top) / run.newest["validation"]["samples"])
    if top - newest <= OVERFIT_SIGMAS * error or run.newest[name] >= best[name]:
        return
    yield Finding(
        "overfitting",
        Severity.NOTE,
        f"validation accuracy {newest:.1%} over the last {OVERFIT_WINDOW} epochs, {100 * (top - newest):.1f} points "
        f"below its best {OVERFIT_WINDOW}, while training loss fell from {best[name]:.3f} to {run.newest[name]:.3f}",
        f"epoch {best['epoch']} stays the selected one; try {fix_overfitting(config)}",
    )


def fix_overfitting(config: Config) -> str:
    """Stronger augmentation, where there is any left, or weight decay."""
    augment, highest = config.augment, 30 if config.augment.policy == "standard" else 10
    stronger = ""
    if augment.policy == "none":
        stronger = "augment.policy = published"
    elif augment.operations == 0:
        stronger = "augment.operations = 1"
    elif augment.magnitude < highest:
        stronger = f"augment.magnitude = {min(augment.magnitude + 2, highest):g}"
    return either(stronger, f"optimizer.weight_decay = {2 * config.optimizer.weight_decay or 1e-4:g}")
