"""Compiled parts compute what eager ones compute, under the same parameter names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adadf_dist.config.load import ConfigLayer, build_config, override
from adadf_dist.distributed.world import World
from adadf_dist.engine.ddp import DDPEngine
from adadf_dist.errors import UserError
from adadf_dist.method.class_distributions import ClassDistributions
from adadf_dist.method.losses import BatchSlice
from tests.helpers.ranks import run_ranks, single_process_world
from tests.helpers.runs import command, finish, numbers, settings
from tests.helpers.steps import over_ranks, take_step

CLASSES = 7


def engine_of(compiled: str, world: World) -> DDPEngine:
    values: dict[str, object] = {"model.backbone": "resnet10", "runtime.precision": "fp32", "runtime.compile": compiled}
    # steps so small that Adam does not amplify rounding
    values |= {"runtime.sync_batch_norm": world.size == 1, "optimizer.lr": 1e-5}
    return DDPEngine(build_config([ConfigLayer("test", values)]), CLASSES, world)


def losses_of(world: World, compiled: str) -> list[float]:
    """Three steps on two kinds of batches: a full one and a shorter last one."""
    engine = engine_of(compiled, world)
    classes = ClassDistributions(CLASSES, engine.config.class_distributions, world)
    losses = []
    for number, rows in enumerate((8, 8, 6)):
        generator = torch.Generator().manual_seed(number)
        images, labels = torch.randn(rows, 3, 32, 32, generator=generator), torch.arange(rows) % CLASSES
        mine = slice(rows // world.size * world.rank, rows // world.size * (world.rank + 1))
        place = (world, BatchSlice(mine.start, rows))
        _, found = take_step(engine, classes, (images[mine], labels[mine]), place, engine.config.loss)
        losses.append(float(over_ranks(found, world)[0]))
    assert engine.state_dict()["model"].keys() == engine_of("off", world).model.state_dict().keys()  # type: ignore[attr-defined]
    return losses


def both(world: World) -> tuple[list[float], list[float]]:
    return losses_of(world, "default"), losses_of(world, "off")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_compiled_steps_equal_eager_steps(ranks: int) -> None:
    for compiled, eager in run_ranks(both, ranks, timeout=400):
        assert compiled == pytest.approx(eager, rel=1e-3)


@pytest.mark.parametrize("supervision", ["fused", "one_hot"])
def test_compiled_parts_have_no_graph_breaks(supervision: str) -> None:
    """One graph for the extractor and one per branch: otherwise parts would stay eager."""
    config = override(engine_of("off", single_process_world()).config, {"loss.supervision": supervision})
    engine = DDPEngine(config, CLASSES, single_process_world())
    parts = [engine.model.extractor, *(b.stages for b in (engine.model.auxiliary, engine.model.target) if b)]
    maps = [torch.randn(4, 3, 32, 32), *[torch.randn(4, 64, 8, 8)] * 2]
    for part, images in zip(parts, maps, strict=False):
        assert torch._dynamo.explain(part)(images).graph_break_count == 0


def refused(world: World) -> str:
    config = override(
        engine_of("off", single_process_world()).config, {"runtime.compile": "default", "runtime.sync_batch_norm": True}
    )
    with pytest.raises(UserError) as caught:
        DDPEngine(config, CLASSES, world)
    return str(caught.value)


def test_synchronized_batch_norm_is_not_compiled() -> None:
    for message in run_ranks(refused, 2):
        assert "runtime.compile is default" in message
        assert "runtime.sync_batch_norm = false" in message


@pytest.mark.slow
def test_compiled_run_resumes_from_an_eager_one(faces: Path, tmp_path: Path) -> None:
    eager = settings(faces, tmp_path / "eager")
    mixed = settings(faces, tmp_path / "mixed")
    assert finish(command(eager)).returncode == 0
    assert finish(command({**mixed, "epochs": "1"})).returncode == 0
    done = finish(command({**mixed, "runtime.compile": "default"}), timeout=400)
    assert done.returncode == 0, done.stderr
    for mine, theirs in zip(numbers(tmp_path / "mixed", "epoch"), numbers(tmp_path / "eager", "epoch"), strict=True):
        assert mine["total"] == pytest.approx(theirs["total"], rel=1e-3)


def test_cuda_graphs_need_a_gpu() -> None:
    with pytest.raises(UserError, match=r"runtime\.compile is reduce-overhead, but the device is cpu"):
        engine_of("reduce-overhead", single_process_world())
