"""The network alone: how fast steps are when faces cost nothing."""

from __future__ import annotations

import argparse
import json
import time

import torch

from adadf_dist.bench.machine import describe_machine, median
from adadf_dist.config import Config
from adadf_dist.data.plan import rank_bounds
from adadf_dist.method.class_distributions import ClassDistributions
from adadf_dist.method.losses import Place, adadf_loss, ramp_weights
from adadf_dist.runtime.engine import build_engine
from adadf_dist.runtime.network import resolve_precision
from adadf_dist.settings import Layer, build_config, override
from adadf_dist.world import World, pick_device

CLASSES = 7
WARM_UP = 3
"""Steps before any is measured: memory is found, kernels are chosen, DDP has its final buckets."""


class SyntheticSteps:
    """Training steps on one random global batch, again and again; a rank holds its slice of it."""

    def __init__(self, config: Config, world: World) -> None:
        config = override(config, {"runtime.precision": resolve_precision(config, world.device)})
        self.config = config
        self.world = world
        self.engine = build_engine(config, CLASSES, world)
        self.classes = ClassDistributions(CLASSES, config.class_distributions, world)
        first, end = rank_bounds(config.batch_size, world.rank, world.size)
        self.place = Place(first, config.batch_size)
        size = config.data.image_size
        self.images = torch.randn(end - first, 3, size, size, device=world.device)
        self.labels = torch.arange(first, end, device=world.device) % CLASSES
        self._ramp = ramp_weights(1, config.loss.epoch_threshold)

    def step(self) -> None:
        """What `train.train_epoch` does with a batch, without log and history."""
        output = self.engine.forward(self.images)
        ranks = (self.world, self.place)
        losses = adadf_loss(output, self.labels, self.classes.current, self._ramp, self.config.loss, ranks)
        self.engine.step(losses.total)
        self.classes.observe(output.auxiliary_logits, self.labels)

    def warm_up(self) -> None:
        for _ in range(WARM_UP):
            self.step()
        wait_for(self.world.device)


def add_options(step: argparse.ArgumentParser) -> None:
    step.add_argument("--sizes", type=int, nargs="+", default=[100, 224], help="sides in pixels (default: 100 224)")
    step.add_argument("--batch-size", type=int, default=64, help="faces a step (default: %(default)s)")
    step.add_argument("--steps", type=int, default=10, help="steps a measurement (default: %(default)s)")
    step.add_argument("--backbone", default="resnet18", help="model.backbone (default: %(default)s)")
    step.add_argument("--precision", default="auto", help="runtime.precision (default: %(default)s)")
    step.set_defaults(run=bench_step)


def bench_step(options: argparse.Namespace) -> None:
    figures: dict[str, list[float]] = {}
    for _ in range(options.repeat):
        for size in options.sizes:
            layer = {"model.backbone": options.backbone, "runtime.precision": options.precision}
            layer |= {"data.image_size": size, "batch_size": options.batch_size}
            figures.setdefault(str(size), []).append(rate(build_config([Layer("bench", layer)]), options.steps))
    machine = describe_machine()
    for size, values in figures.items():
        print(f"{options.backbone} at {size}x{size}, batch {options.batch_size}: {median(values):8.0f} images/s")
    print(machine)
    if options.json is not None:
        report = {"machine": machine, "batch_size": options.batch_size, "images_per_s": figures}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def rate(config: Config, steps: int) -> float:
    """Images/s of training steps on one batch."""
    world = World(pick_device())
    work = SyntheticSteps(config, world)
    work.warm_up()
    began = time.perf_counter()
    for _ in range(steps):
        work.step()
    wait_for(world.device)
    return steps * config.batch_size / (time.perf_counter() - began)


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
