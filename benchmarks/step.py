"""Measure the speed of training steps without data loading."""

from __future__ import annotations

import argparse
import itertools
import time
from statistics import median

from adadf_dist.config.load import ConfigLayer, build_config, override
from adadf_dist.config.schema import Config
from adadf_dist.distributed.world import World, pick_device
from adadf_dist.engine.base import resolve_precision
from adadf_dist.files.outputs import write_output
from adadf_dist.training.synthetic_step import SyntheticTrainer, synchronize
from benchmarks.machine import describe_machine

CLASSES = 7
WARM_UP = 3
"""Number of warm-up steps, after which memory is allocated, kernels are selected and DDP's buckets are final."""


def make_warm_trainer(config: Config, world: World) -> SyntheticTrainer:
    """Return a synthetic trainer that has run its warm-up steps; the configured precision may be `auto`."""
    config = override(config, {"runtime.precision": resolve_precision(config, world.device)})
    trainer = SyntheticTrainer(config, CLASSES, world)
    for _ in range(WARM_UP):
        trainer.step()
    synchronize(world.device)
    return trainer


def add_options(step: argparse.ArgumentParser) -> None:
    step.add_argument(
        "--image-sizes", type=int, nargs="+", default=[100, 224], help="sides in pixels (default: 100 224)"
    )
    step.add_argument("--batch-size", type=int, default=64, help="samples per step (default: %(default)s)")
    step.add_argument("--steps", type=int, default=10, help="steps per measurement (default: %(default)s)")
    step.add_argument("--backbone", default="resnet18", help="model.backbone (default: %(default)s)")
    step.add_argument("--precision", default="auto", help="runtime.precision (default: %(default)s)")
    modes = ["off", "default", "reduce-overhead"]
    step.add_argument(
        "--compile", nargs="+", choices=modes, default=["off"], help="one or more values of runtime.compile"
    )
    step.set_defaults(run=bench_step)


def bench_step(options: argparse.Namespace) -> None:
    figures: dict[str, list[float]] = {}
    for _ in range(options.repeat):
        for size, compiled in itertools.product(options.image_sizes, options.compile):
            layer = {"model.backbone": options.backbone, "runtime.precision": options.precision}
            layer |= {"data.image_size": size, "batch_size": options.batch_size, "runtime.compile": compiled}
            name = f"{size}x{size}" + (f", compile {compiled}" if options.compile != ["off"] else "")
            figures.setdefault(name, []).append(rate(build_config([ConfigLayer("bench", layer)]), options.steps))
    machine = describe_machine()
    for name, values in figures.items():
        print(f"{options.backbone} at {name}, batch {options.batch_size}: {median(values):8.0f} images/s")
    print(machine)
    if options.json is not None:
        report = {"machine": machine, "batch_size": options.batch_size, "images_per_s": figures}
        write_output(options.json, report)


def rate(config: Config, steps: int) -> float:
    """Return how many images per second are trained in `steps` steps on one batch."""
    world = World(pick_device())
    work = make_warm_trainer(config, world)
    began = time.perf_counter()
    for _ in range(steps):
        work.step()
    synchronize(world.device)
    return steps * config.batch_size / (time.perf_counter() - began)
