"""Compiled parts compute what eager ones do, under the same names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adadf_dist.errors import UserError
from adadf_dist.method.class_distributions import ClassDistributions
from adadf_dist.method.losses import Place, adadf_loss, ramp_weights
from adadf_dist.runtime.engine import DDPEngine
from adadf_dist.settings import Layer, build_config
from adadf_dist.world import World
from tests.ranks import alone, run_ranks
from tests.runs import command, finish, numbers, settings

CLASSES = 7


def engine_of(compiled: str, world: World) -> DDPEngine:
    values = {"model.backbone": "resnet10", "runtime.precision": "fp32", "runtime.compile": compiled}
    return DDPEngine(build_config([Layer("test", values)]), CLASSES, world)


def losses_of(world: World, compiled: str) -> list[float]:
    """Three steps on two kinds of batches: a whole one and a shorter last one."""
    engine = engine_of(compiled, world)
    classes = ClassDistributions(CLASSES, engine.config.class_distributions, world)
    losses = []
    for number, rows in enumerate((8, 8, 6)):
        generator = torch.Generator().manual_seed(number)
        images, labels = torch.randn(rows, 3, 32, 32, generator=generator), torch.arange(rows) % CLASSES
        mine = slice(rows // world.size * world.rank, rows // world.size * (world.rank + 1))
        place = (world, Place(mine.start, rows))
        output = engine.forward(images[mine])
        loss = adadf_loss(output, labels[mine], classes.current, ramp_weights(1, 3), engine.config.loss, place)
        engine.step(loss.total)
        losses.append(float(world.sum_(loss.total.detach().clone()) / world.size))
    assert engine.state_dict()["model"].keys() == engine_of("off", world).model.state_dict().keys()  # type: ignore[attr-defined]
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_compiled_steps_are_the_eager_ones(ranks: int) -> None:
    for losses in run_ranks(losses_of, ranks, "default", timeout=400):
        assert losses == pytest.approx(losses_of(alone(), "off"), rel=1e-3)


@pytest.mark.slow
def test_a_compiled_run_goes_on_from_an_eager_one(faces: Path, tmp_path: Path) -> None:
    eager = settings(faces, tmp_path / "eager")
    mixed = settings(faces, tmp_path / "mixed")
    assert finish(command(eager)).returncode == 0
    assert finish(command({**mixed, "epochs": "1"})).returncode == 0
    done = finish(command({**mixed, "runtime.compile": "default"}), timeout=400)
    assert done.returncode == 0, done.stderr
    for mine, theirs in zip(numbers(tmp_path / "mixed", "epoch"), numbers(tmp_path / "eager", "epoch"), strict=True):
        assert mine["total"] == pytest.approx(theirs["total"], rel=1e-3)


def test_graphs_need_a_gpu() -> None:
    with pytest.raises(UserError, match=r"runtime\.compile is cuda-graphs, but the device is cpu"):
        engine_of("cuda-graphs", alone())
