"""One training step of an engine without loader and logger."""

from __future__ import annotations

import torch
from torch import Tensor

from adadf_dist.config.schema import LossConfig
from adadf_dist.distributed.world import World
from adadf_dist.engine.ddp import Engine
from adadf_dist.method.class_distributions import ClassDistributions
from adadf_dist.method.losses import BatchSlice, Losses, TargetInputs, adadf_loss, ramp_weights
from adadf_dist.method.model import Output

LOSSES = ("total", "kl_divergence", "cross_entropy", "rank_regularization")


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


def over_ranks(losses: Losses, world: World) -> Tensor:
    """The global losses [4]: their mean over ranks."""
    scalars = torch.stack([getattr(losses, name).detach() for name in LOSSES])
    return world.all_reduce_sum_(scalars) / world.size
