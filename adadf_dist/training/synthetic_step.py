"""Training steps on random data, for measurements."""

from __future__ import annotations

import torch

from adadf_dist.config.learning_rate import Position
from adadf_dist.config.schema import Config
from adadf_dist.data.sampling import rank_slice
from adadf_dist.distributed.world import World
from adadf_dist.engine.ddp import build_engine
from adadf_dist.method.class_distributions import ClassDistributions
from adadf_dist.method.losses import BatchSlice, TargetInputs, adadf_loss, ramp_weights


class SyntheticTrainer:
    """Repeats training steps on the same random global batch. Each rank has its slice; `config` must be resolved."""

    def __init__(self, config: Config, num_classes: int, world: World) -> None:
        crops = 10 if config.data.ten_crop_resize else 1
        first, end = rank_slice(config.batch_size, world.rank, world.size)
        self.config = config
        self.world = world
        self.engine = build_engine(config, num_classes, world)
        self.classes = ClassDistributions(num_classes, config.class_distributions, world)
        self.batch_slice = BatchSlice(first * crops, config.batch_size * crops)
        size = config.data.image_size
        self.images = torch.randn((end - first) * crops, 3, size, size, device=world.device)
        self.labels = torch.arange(len(self.images), device=world.device) % num_classes
        if config.model.cached_augmentations:
            self.images = self.engine.extract(self.images)
            self.engine.skip_extractor()
        self._steps = 0
        self._ramp = ramp_weights(1, config.loss.epoch_threshold)

    def step(self) -> None:
        """Run one training step as in `train.train_epoch`, without logging, sample history and extensions."""
        self.engine.set_schedule_step(Position(0, self._steps, 0.0))
        self._steps += 1
        output = self.engine.forward(self.images)
        ranks = (self.world, self.batch_slice)
        inputs = TargetInputs(self.classes.targets)
        losses = adadf_loss(output, self.labels, inputs, self._ramp, self.config.loss, ranks)
        self.engine.step(losses.total)
        self.classes.observe(output.auxiliary_logits, self.labels)

    def infer(self) -> None:
        """Run the network on the same batch in evaluation mode."""
        self.engine.forward_eval(self.images)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all queued work, for correct GPU timings."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
