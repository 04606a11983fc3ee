"""What ranks tell each other, counted on paper: the messages of a step and of an epoch, from the network itself."""

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
"""Bytes."""
FIRST_BUCKET, BUCKET = 1 << 20, 25 << 20
"""Bytes at which DDP closes its first bucket of gradients, and the others (its defaults)."""
EVALUATION_SUMS, LOSSES, HISTORY = 4, 4, 4
"""Numbers beside the confusion matrix, of a step's losses, and of a face's history."""

Device = Literal["cpu", "cuda"]


class Communication(NamedTuple):
    """The messages of one purpose."""

    part: str
    operation: Literal["all-reduce", "all-gather", "broadcast"]
    calls: int
    nbytes: int
    """What one rank hands in, all calls together; for a broadcast, what rank 0 does."""

    def sent(self, ranks: int) -> float:
        """Bytes that a rank sends, the mean over ranks, along a ring (an all-gather's and a broadcast's as well)."""
        if self.operation == "all-reduce":
            return 2 * (ranks - 1) / ranks * self.nbytes
        if self.operation == "all-gather":
            return float((ranks - 1) * self.nbytes)
        return (ranks - 1) / ranks * self.nbytes

    def scaled(self, number: int) -> Communication:
        return self._replace(calls=self.calls * number, nbytes=self.nbytes * number)


def network(config: Config, num_classes: int, frozen: bool) -> DualBranch:
    """The network as it trains, with random weights."""
    model, _ = build_model(config, num_classes)
    if frozen:
        model.freeze_extractor()
    return model.train()


def step_traffic(model: DualBranch, config: Config, ranks: int, device: Device) -> list[Communication]:
    """A training step's messages. A global batch of `config.batch_size` faces, one crop each."""
    found = [gradients(model)]
    if config.loss.scope == "global" and config.loss.supervision != "one_hot":
        # eqs 9 to 11: each rank's attention goes into a buffer of the whole batch, and so does its gradient
        found.append(Communication("attention", "all-reduce", 2, 2 * config.batch_size * FLOAT))
    if config.runtime.sync_batch_norm:
        found += batch_norm(model, ranks, device)
    return found


def gradients(model: nn.Module) -> Communication:
    """Everything that trains, in float32 whatever the precision; buckets as DDP fills them, last parameters first."""
    sizes = [p.numel() * FLOAT for p in model.parameters() if p.requires_grad]
    buckets, filled, limit = 0, 0, FIRST_BUCKET
    for size in reversed(sizes):
        filled += size
        if filled >= limit:
            buckets, filled, limit = buckets + 1, 0, BUCKET
    return Communication("gradients", "all-reduce", buckets + (filled > 0), sum(sizes))


def batch_norm(model: nn.Module, ranks: int, device: Device) -> list[Communication]:
    """Statistics over the global batch: one message a layer forward, one backward.

    On a CPU (runtime.normalization) an all-reduce of a [ranks, 1 + 2C] float64 buffer and one of 2C; on a GPU torch's
    SyncBatchNorm, an all-gather of 1 + 2C float32 and an all-reduce of 2C. A frozen layer has nothing to say.
    """
    channels = [m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    layers, statistics = len(channels), sum(1 + 2 * c for c in channels)
    if device == "cpu":
        forward = Communication("BatchNorm, forward", "all-reduce", layers, ranks * statistics * DOUBLE)
        return [forward, Communication("BatchNorm, backward", "all-reduce", layers, 2 * sum(channels) * DOUBLE)]
    forward = Communication("BatchNorm, forward", "all-gather", layers, statistics * FLOAT)
    return [forward, Communication("BatchNorm, backward", "all-reduce", layers, 2 * sum(channels) * FLOAT)]


def epoch_traffic(config: Config, num_classes: int, faces: int) -> list[Communication]:
    """An epoch's messages beside those of its steps: one validation pass, and the checkpoint at the epoch's end.

    Not counted: barriers, which carry nothing, and checkpoints in mid-epoch.
    """
    steps = math.ceil(faces / config.batch_size)
    agreements, reports = steps // config.runtime.stop_every, math.ceil(steps / config.runtime.log_every)
    classes = num_classes * (num_classes + 1) * DOUBLE
    kept = min(len(config.runtime.history_samples) + config.runtime.history_faces, faces)
    history, listed = faces * HISTORY * FLOAT, kept * 3 * num_classes * FLOAT
    tests = 1 + (config.evaluation.protocol == "published")
    totals = (EVALUATION_SUMS + num_classes**2) * DOUBLE
    found = [
        Communication("class distributions", "all-reduce", 1, classes),
        Communication("history of each face", "all-reduce", 2, history + listed),
        Communication("evaluation totals", "all-reduce", tests, tests * totals),
        Communication("checkpoint: class distributions, history", "all-reduce", 3, classes + history + listed),
        Communication("losses, for the log", "all-reduce", reports, steps * LOSSES * DOUBLE),
        Communication("agreements on stopping", "all-reduce", agreements + 1, (agreements + 1) * INTEGER),
        Communication("faces replaced", "all-gather", 2, object_bytes(0)),
        Communication("which rank is slow", "all-gather", 2, object_bytes((socket.gethostname(), 1.5, 1.5, 1.5))),
    ]
    if config.checkpoint.every_minutes:  # asked of rank 0 where the ranks agree on stopping
        asked = Communication("is a checkpoint due?", "broadcast", 2, object_bytes(False))
        found.append(asked.scaled(agreements))
    return found


def object_bytes(value: object) -> int:
    """Of a plain value as torch sends one: its length, then its pickle."""
    return INTEGER + len(pickle.dumps(value))
