"""Engines on a GPU: CUDA graphs, NCCL, DeepSpeed on CUDA, bf16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adadf_dist.config.learning_rate import Position
from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.config.schema import Config
from adadf_dist.distributed.world import World
from adadf_dist.engine.ddp import Engine, build_engine
from adadf_dist.method.class_distributions import ClassDistributions
from adadf_dist.method.losses import BatchSlice
from tests.helpers.runs import command, finish, records, settings
from tests.helpers.steps import take_step

CLASSES = 7
ROWS = 32

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")]


def config_of(**changed: object) -> Config:
    base: dict[str, object] = {"model.backbone": "resnet10", "runtime.precision": "fp32", "batch_size": ROWS}
    return build_config([ConfigLayer("test", base | {key.replace("__", "."): value for key, value in changed.items()})])


def losses_of(engine: Engine, config: Config, world: World, steps: int = 6) -> list[float]:
    """Losses of steps on different batches; a small learning rate keeps rounding from growing."""
    classes = ClassDistributions(CLASSES, config.class_distributions, world)
    losses = []
    for number in range(steps):
        generator = torch.Generator().manual_seed(number)
        images = torch.randn(ROWS, 3, 64, 64, generator=generator).to(world.device)
        labels = (torch.arange(ROWS) % CLASSES).to(world.device)
        engine.set_schedule_step(Position(0, number, 0.0))
        _, found = take_step(engine, classes, (images, labels), (world, BatchSlice(0, ROWS)), config.loss)
        losses.append(float(found.total))
    return losses


@pytest.mark.parametrize(
    "changed",
    [
        {"runtime__compile": "default"},
        {"runtime__compile": "reduce-overhead"},
        *({"engine": "deepspeed", "deepspeed__zero_stage": stage} for stage in range(4)),
    ],
    ids=lambda changed: "-".join(map(str, changed.values())),
)
def test_every_variant_of_a_step_equals_the_plain_one(changed: dict[str, object]) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    world = World(torch.device("cuda", 0))
    plain, other = config_of(optimizer__lr=1e-5), config_of(optimizer__lr=1e-5, **changed)
    wanted = losses_of(build_engine(plain, CLASSES, world), plain, world)
    assert losses_of(build_engine(other, CLASSES, world), other, world) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("engine", ["ddp", "deepspeed"])
def test_run_on_the_gpu(engine: str, faces: Path, tmp_path: Path) -> None:
    done = finish(command(settings(faces, tmp_path / "run", engine=engine, runtime__precision="bf16")), timeout=280)
    assert done.returncode == 0, done.stderr
    assert [record["epoch"] for record in records(tmp_path / "run", "epoch")] == [1, 2]
