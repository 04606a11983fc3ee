"""Compute the messages of a training step and of an epoch, and their size, from the network."""

from __future__ import annotations

import math
import pickle
import socket
from typing import Literal, NamedTuple

from torch import nn

from adadf_dist.config.schema import Config
from adadf_dist.engine.base import build_model
from adadf_dist.method.model import DualBranch

FLOAT, DOUBLE, INTEGER = 4, 8, 8
"""Bytes per number of each type."""
FIRST_BUCKET, BUCKET = 1 << 20, 25 << 20
"""Sizes in bytes of DDP's first gradient bucket and of all others, by default."""
EVALUATION_SUMS, LOSSES, HISTORY = 4, 4, 4
"""Numbers of evaluation sums besides the confusion matrix, of losses per step, and of history values per sample."""

Device = Literal["cpu", "cuda"]


class Communication(NamedTuple):
    """All messages with the same purpose."""

    part: str
    operation: Literal["all-reduce", "all-gather", "broadcast"]
    calls: int
    nbytes: int
    """Input bytes of one rank (rank 0 for a broadcast), summed over all calls."""

    def sent(self, ranks: int) -> float:
        """Return the mean number of bytes that a rank sends, assuming ring algorithms for all operations."""
        if self.operation == "all-reduce":
            return 2 * (ranks - 1) / ranks * self.nbytes
        if self.operation == "all-gather":
            return float((ranks - 1) * self.nbytes)
        return (ranks - 1) / ranks * self.nbytes

    def scaled(self, number: int) -> Communication:
        return self._replace(calls=self.calls * number, nbytes=self.nbytes * number)


def network(config: Config, num_classes: int, frozen: bool) -> DualBranch:
    """Build the network in training mode with random weights."""
    model, _ = build_model(config, num_classes)
    if frozen:
        model.freeze_extractor()
    return model.train()


def step_traffic(model: DualBranch, config: Config, ranks: int, device: Device) -> list[Communication]:
    """Return the messages of a training step on a global batch of `config.batch_size` samples with one crop each."""
    found = [gradients(model)]
    if config.loss.batch_scope == "global" and not config.loss.is_baseline:
        # eqs 9 to 11: each rank writes its attention, and its gradient, to a buffer of the global batch
        found.append(Communication("attention", "all-reduce", 2, 2 * config.batch_size * FLOAT))
    if config.runtime.sync_batch_norm:
        found += batch_norm(model, ranks, device)
    return found


def gradients(model: nn.Module) -> Communication:
    """Return the messages for the float32 gradients of all trainable parameters, which DDP buckets in reverse order."""
    sizes = [p.numel() * FLOAT for p in model.parameters() if p.requires_grad]
    buckets, filled, limit = 0, 0, FIRST_BUCKET
    for size in reversed(sizes):
        filled += size
        if filled >= limit:
            buckets, filled, limit = buckets + 1, 0, BUCKET
    return Communication("gradients", "all-reduce", buckets + (filled > 0), sum(sizes))


def batch_norm(model: nn.Module, ranks: int, device: Device) -> list[Communication]:
    """Return the messages of BatchNorm over the global batch: one per layer in the forward and in the backward pass.

    On a CPU, these are an all-reduce of a [ranks, 1 + 2C] float64 buffer and one of 2C float64 values; on a GPU, where
    torch's SyncBatchNorm is used, an all-gather of 1 + 2C and an all-reduce of 2C float32 values. Frozen layers send
    nothing.
    """
    channels = [m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    layers, statistics = len(channels), sum(1 + 2 * c for c in channels)
    if device == "cpu":
        forward = Communication("BatchNorm, forward", "all-reduce", layers, ranks * statistics * DOUBLE)
        return [forward, Communication("BatchNorm, backward", "all-reduce", layers, 2 * sum(channels) * DOUBLE)]
    forward = Communication("BatchNorm, forward", "all-gather", layers, statistics * FLOAT)
    return [forward, Communication("BatchNorm, backward", "all-reduce", layers, 2 * sum(channels) * FLOAT)]


def epoch_traffic(config: Config, num_classes: int, faces: int) -> list[Communication]:
    """Return an epoch's messages outside its steps, including one validation pass and the checkpoint at its end.

    Barriers, which have no payload, and mid-epoch checkpoints are not counted.
    """
    steps = math.ceil(faces / config.batch_size)
    agreements, reports = steps // config.runtime.stop_check_steps, math.ceil(steps / config.runtime.log_every_steps)
    classes = num_classes * (num_classes + 1) * DOUBLE
    kept = min(len(config.runtime.tracked_samples) + config.runtime.num_tracked_samples, faces)
    history, listed = faces * HISTORY * FLOAT, kept * 3 * num_classes * FLOAT
    tests = 1 + (config.evaluation.protocol == "paper")
    totals = (EVALUATION_SUMS + num_classes**2) * DOUBLE
    found = [
        Communication("class distributions", "all-reduce", 1, classes),
        Communication("history of each sample", "all-reduce", 2, history + listed),
        Communication("evaluation totals", "all-reduce", tests, tests * totals),
        Communication("checkpoint: class distributions, history", "all-reduce", 3, classes + history + listed),
        Communication("losses for the log", "all-reduce", reports, steps * LOSSES * DOUBLE),
        Communication("coordinated stop checks", "all-reduce", agreements + 1, (agreements + 1) * INTEGER),
        Communication("replaced samples", "all-gather", 2, object_bytes(0)),
        Communication("straggler detection", "all-gather", 2, object_bytes((socket.gethostname(), 1.5, 1.5, 1.5))),
    ]
    if config.checkpoint.save_every_minutes:  # rank 0 decides at coordinated stop checks
        asked = Communication("checkpoint due", "broadcast", 2, object_bytes(False))
        found.append(asked.scaled(agreements))
    return found


def object_bytes(value: object) -> int:
    """Return the number of bytes that torch sends for a Python object: its length, then its pickle."""
    return INTEGER + len(pickle.dumps(value))
