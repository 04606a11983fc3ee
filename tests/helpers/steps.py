"""One training step of an engine without loader and logger."""

from __future__ import annotations

import torch
from torch import Tensor

from adadf_dist.config.schema import LossConfig
from adadf_dist.data.batch import Batch
from adadf_dist.distributed.world import World
from adadf_dist.engine.ddp import Engine
from adadf_dist.method.class_distributions import ClassDistributions
from adadf_dist.method.losses import BatchSlice, Losses, TargetInputs, adadf_loss, ramp_weights
from adadf_dist.method.model import Output
from adadf_dist.training.target_state import TargetState

LOSSES = ("total", "kl_divergence", "cross_entropy", "rank_regularization")

EXTENSIONS = {
    "model.backbone": "resnet10",
    "runtime.precision": "fp32",
    "loss.target_adjustment": 0.7,
    "loss.min_label_prob": 0.5,
    "loss.logit_adjustment": 1.2,
    "loss.label_smoothing": 0.1,
    "optimizer.ema_decay": 0.5,
    "class_distributions.sample_momentum": 0.6,
    "class_distributions.relative_threshold": 0.8,
}
"""Keys of a small network with every extension of docs/method.md."""


def take_step(
    engine: Engine,
    classes: ClassDistributions,
    batch: tuple[Tensor, Tensor],
    ranks: tuple[World, BatchSlice],
    loss: LossConfig,
) -> tuple[Output, Losses]:
    """A step on this rank's rows, images and labels; `ranks` gives their positions in the global batch."""
    images, labels = batch
    output = engine.forward(images)
    losses = adadf_loss(output, labels, TargetInputs(classes.targets), ramp_weights(2, 3), loss, ranks)
    engine.step(losses.total)
    classes.observe(output.auxiliary_logits, labels)
    return output, losses


def take_extended_step(
    engine: Engine, classes: ClassDistributions, targets: TargetState, rows: Batch, world: World
) -> Losses:
    """A step with the extensions of docs/method.md on this rank's rows of a global batch."""
    output = engine.forward(rows.images)
    inputs = targets.inputs(classes.targets, rows)
    ranks = (world, BatchSlice(rows.offset, rows.global_size))
    losses = adadf_loss(output, rows.labels, inputs, ramp_weights(2, 3), targets.config.loss, ranks)
    engine.step(losses.total)
    classes.observe(output.auxiliary_logits, rows.labels)
    targets.observe(rows, output, losses)
    return losses


def over_ranks(losses: Losses, world: World) -> Tensor:
    """The global losses [4]: their mean over ranks."""
    scalars = torch.stack([getattr(losses, name).detach() for name in LOSSES])
    return world.all_reduce_sum_(scalars) / world.size
