"""A training step never makes the host wait for the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from adadf_dist.config.learning_rate import Position
from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.data.batch import Batch
from adadf_dist.engine.ddp import DDPEngine
from adadf_dist.method.class_distributions import ClassDistributions
from adadf_dist.method.losses import BatchSlice
from adadf_dist.method.target_averages import MeanFused, SampleAverages
from adadf_dist.tracking.sample_history import SampleHistoryRecorder
from adadf_dist.training.target_state import TargetState
from tests.helpers.ranks import single_process_world
from tests.helpers.steps import EXTENSIONS, LOSSES, take_extended_step, take_step

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.default", "is_nonzero")


class Watch(TorchDispatchMode):
    """Records operations that need a value, or a size, on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(func) for name in WAITS):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("supervision", ["fused", "one_hot"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_step_never_synchronizes(supervision: str, precision: str) -> None:
    values = {"loss.supervision": supervision, "runtime.precision": precision, "model.backbone": "resnet10"}
    config = build_config([ConfigLayer("test", {**values, "optimizer.ema_decay": 0.9})])
    world = single_process_world()
    engine = DDPEngine(config, 7, world)
    classes = ClassDistributions(7, config.class_distributions, world)
    history = SampleHistoryRecorder(20, 7, world, listed=[3, 5])
    images, labels, samples = torch.randn(8, 3, 32, 32), torch.arange(8) % 7, torch.arange(8)

    def step(number: int) -> None:
        engine.set_schedule_step(Position(0, number, 0.0))
        output, losses = take_step(engine, classes, (images, labels), (world, BatchSlice(0, 8)), config.loss)
        history.update(Batch(images, labels, samples, 0, 8), output, losses)
        for name in LOSSES:
            assert getattr(losses, name).dtype == torch.float32  # bf16 ends at the heads

    step(0)
    with Watch() as watch:
        step(1)
    assert watch.seen == []


def test_step_with_extensions_never_synchronizes() -> None:
    config = build_config([ConfigLayer("test", EXTENSIONS)])
    world = single_process_world()
    engine, classes = DDPEngine(config, 7, world), ClassDistributions(7, config.class_distributions, world)
    offset = torch.zeros(7, dtype=torch.float64)
    targets = TargetState(config, offset, None, MeanFused(7, world), SampleAverages(20, 7, 0.5, world))
    rows = Batch(torch.randn(8, 3, 32, 32), torch.arange(8) % 7, torch.arange(8), 0, 8)
    take_extended_step(engine, classes, targets, rows, world)
    targets.finalize_epoch()
    with Watch() as watch:
        take_extended_step(engine, classes, targets, rows, world)
    assert watch.seen == []


def test_watch_detects_a_synchronization() -> None:
    with Watch() as watch:
        torch.ones(3).sum().item()
    assert len(watch.seen) == 1
