"""DeepSpeed's steps and checkpoints equal DDP's from the same state at every ZeRO stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adadf_dist.config.learning_rate import Position
from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.config.schema import Config
from adadf_dist.data.sampling import rank_slice
from adadf_dist.distributed.world import World
from adadf_dist.engine.base import init_model
from adadf_dist.engine.ddp import Engine, build_engine
from adadf_dist.method.class_distributions import ClassDistributions
from adadf_dist.method.losses import BatchSlice
from tests.helpers.ranks import run_ranks, single_process_world
from tests.helpers.runs import command, finish, records, settings
from tests.helpers.steps import over_ranks, take_step

CLASSES = 7
ROWS = 13
"""Of a batch: uneven shares, as at the end of an epoch."""
STAGES = [0, 1, 2, 3]


def config_of(**changed: object) -> Config:
    """Keyword arguments have `__` for the dot."""
    base: dict[str, object] = {
        "loss.rank_margin": 1.0,  # rank regularization is always active
        "runtime.precision": "fp32",
        "model.backbone": "resnet10",
        "batch_size": ROWS,
    }
    return build_config([ConfigLayer("test", base | {key.replace("__", "."): value for key, value in changed.items()})])


def deepspeed_config(stage: int, **changed: object) -> Config:
    return config_of(engine="deepspeed", deepspeed__zero_stage=stage, **changed)


def batch_of(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(ROWS, 3, 32, 32, generator=generator)
    return images, torch.randint(CLASSES, (ROWS,), generator=generator)


def step(engine: Engine, config: Config, world: World, number: int) -> dict[str, Tensor]:
    """One step on this rank's slice of batch `number`: the global losses, and the sums behind class distributions."""
    images, labels = batch_of(number)
    first, end = rank_slice(ROWS, world.rank, world.size)
    engine.set_schedule_step(Position(0, number, number / 100))
    classes = ClassDistributions(CLASSES, config.class_distributions, world)
    rows = (images[first:end], labels[first:end])
    _, losses = take_step(engine, classes, rows, (world, BatchSlice(first, ROWS)), config.loss)
    return {"losses": over_ranks(losses, world), "class sums": classes.state_dict()["pending"]}


def flat(state: dict[str, Any]) -> dict[str, Tensor]:
    """An engine's state as one dictionary of copies."""
    tensors = {
        f"{part}/{name}": value.clone() for part in ("model", "average") for name, value in state.get(part, {}).items()
    }
    for name, moments in state["moments"].items():
        tensors |= {f"moments/{name}/{key}": value.clone() for key, value in moments.items()}
    return tensors


def assert_close(mine: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(
            value, theirs[name], rtol=tolerance, atol=tolerance, check_stride=False, msg=lambda m, n=name: f"{n}: {m}"
        )


def side_by_side(world: World, stages: list[int], steps: int, changed: dict[str, object]) -> None:
    for stage in stages:
        compare(world, stage, steps, changed)


def compare(world: World, stage: int, steps: int, changed: dict[str, object]) -> None:
    """Every step starts from the state of DDP's engine: losses, class sums, weights, buffers, moments within 1e-5."""
    ddp_config, zero_config = config_of(**changed), deepspeed_config(stage, **changed)
    ddp, zero = build_engine(ddp_config, CLASSES, world), build_engine(zero_config, CLASSES, world)
    for number in range(steps):
        state = ddp.state_dict()
        zero.load_state_dict(state)
        assert_close(flat(zero.state_dict()), flat(state), 0)
        wanted, found = step(ddp, ddp_config, world, number), step(zero, zero_config, world, number)
        assert_close(found, wanted, 1e-5)
        mine, theirs = flat(zero.state_dict()), flat(ddp.state_dict())
        if number == 0:  # Adam's first step moves a weight by lr however small its gradient: rounding decides the sign
            mine, theirs = ({k: v for k, v in state.items() if k.startswith("moments")} for state in (mine, theirs))
        assert_close(mine, theirs, 1e-5)
        zero.sync_for_eval()
        images = batch_of(0)[0][:4]
        torch.testing.assert_close(zero.predict(images), ddp.predict(images), rtol=1e-3, atol=1e-3)


def test_step_equals_ddp() -> None:
    run_ranks(side_by_side, 2, STAGES, 2, {})


def back_to_the_start(world: World, stages: list[int]) -> list[float]:
    """Losses of two steps, of the same steps repeated from the earlier state, and their differences."""
    differences = []
    for config in (config_of(), *(deepspeed_config(stage) for stage in stages)):
        engine = build_engine(config, CLASSES, world)
        start = engine.state_dict()
        first = [step(engine, config, world, number)["losses"] for number in range(2)]
        engine.load_state_dict(start)
        again = [step(engine, config, world, number)["losses"] for number in range(2)]
        differences.append(float((torch.stack(first) - torch.stack(again)).abs().max()))
    return differences


@pytest.mark.slow
def test_loading_a_state_without_moments_resets_them() -> None:
    """A saved state does not change along with its engine."""
    for differences in run_ranks(back_to_the_start, 2, [1, 3]):
        assert max(differences) == 0


@pytest.mark.slow
def test_thirty_steps_equal_ddp() -> None:
    run_ranks(side_by_side, 2, STAGES, 30, {}, timeout=900)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        {"optimizer__max_grad_norm": 0.1},
        {"optimizer__ema_decay": 0.9},
        {"loss__supervision": "one_hot"},
        {"optimizer__lr_scaling": "sqrt", "optimizer__base_batch_size": 2},
    ],
    ids=["clipped", "averaged", "one branch", "scaled"],
)
def test_variants_equal_ddp(changed: dict[str, object]) -> None:
    run_ranks(side_by_side, 2, STAGES, 3, changed)


@pytest.mark.slow
def test_own_learning_rate_of_loaded_parameters_equals_ddp(tmp_path: Path) -> None:
    """Three groups of parameters: loaded, classifiers, attention heads."""
    model = init_model(config_of(), CLASSES)
    torch.save(model.extractor.state_dict() | model.target.stages.state_dict(), tmp_path / "weights.pt")
    changed = {"model__pretrained": str(tmp_path / "weights.pt"), "model__freeze": "never"}
    run_ranks(side_by_side, 2, STAGES, 3, {**changed, "optimizer__pretrained_lr_mult": 0.5})


def clipped_norms(world: World, stages: list[int]) -> list[tuple[float, float]]:
    """Norm of the gradient in Adam's first step, without and with clipping: exp_avg is a tenth of it."""

    def norm(stage: int, clip: float) -> float:
        config = deepspeed_config(stage, optimizer__max_grad_norm=clip)
        engine = build_engine(config, CLASSES, world)
        step(engine, config, world, 0)
        squares = [v.square().sum() for name, v in flat(engine.state_dict()).items() if name.endswith("exp_avg")]
        return 10 * float(torch.stack(squares).sum().sqrt())

    return [(norm(stage, 0.0), norm(stage, 0.1)) for stage in stages]


@pytest.mark.slow
def test_clipping_uses_the_norm_of_the_whole_gradient() -> None:
    """Over all parameters of all ranks, not only those of one rank."""
    for rank in run_ranks(clipped_norms, 2, [1, 3]):
        for free, clipped in rank:
            assert free > 0.2
            assert clipped == pytest.approx(0.1, rel=1e-3)


def frozen(world: World, stages: list[int], weights: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The state of each stage's engine before and after two steps."""
    states = []
    for stage in stages:
        config = deepspeed_config(stage, model__pretrained=weights)
        engine = build_engine(config, CLASSES, world)
        before = flat(engine.state_dict())
        for number in range(2):
            step(engine, config, world, number)
        states.append((before, dict(engine.state_dict())))
    return states


@pytest.mark.slow
def test_frozen_parameters_and_buffers_are_in_the_checkpoint(tmp_path: Path) -> None:
    """Every tensor that DDP saves, under the same name; frozen ones as loaded, BatchNorm's statistics as updated."""
    source = build_engine(config_of(), CLASSES, single_process_world())
    backbone = {**source.model.extractor.state_dict(), **source.model.target.stages.state_dict()}
    torch.save(backbone, tmp_path / "backbone.pt")
    names = source.model.state_dict().keys()
    first, second = run_ranks(frozen, 2, [0, 2, 3], str(tmp_path / "backbone.pt"))
    for (before, after), (_, other) in zip(first, second, strict=True):
        model = after["model"]
        assert model.keys() == names
        moved = {name for name in model if not torch.equal(model[name], before[f"model/{name}"])}
        assert not any(name.startswith("extractor") for name in moved)
        assert "target.stages.layer4.0.bn1.running_mean" in moved
        assert not any(name.startswith("extractor") for name in after["moments"])
        assert all(torch.equal(model[name], other["model"][name]) for name in names), "ranks differ"


def learn(world: World, changed: dict[str, object], steps: int) -> float:
    """Mean cross entropy of the last 5 of `steps` steps in bf16 over three repeated batches."""
    config = config_of(runtime__precision="bf16", **changed)
    engine = build_engine(config, CLASSES, world)
    seen = [float(step(engine, config, world, number % 3)["losses"][2]) for number in range(steps)]
    return sum(seen[-5:]) / 5


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_more_ranks_learn_as_well_in_bf16(ranks: int) -> None:
    """DeepSpeed's own bf16 mode is known to lose accuracy as ranks are added (its issue 3979)."""
    zero = {"engine": "deepspeed", "deepspeed__zero_stage": 1}
    alone_learnt = learn(single_process_world(), {}, 21)
    untrained = learn(single_process_world(), {}, 5)
    for learnt in run_ranks(learn, ranks, zero, 21):
        assert learnt < untrained / 2
        assert learnt == pytest.approx(alone_learnt, rel=0.1)


@pytest.mark.slow
def test_run_switches_from_ddp_to_zero_and_back(faces: Path, tmp_path: Path) -> None:
    """One epoch each on two ranks of DDP, two of ZeRO 3 and one of DDP equal a run on one rank."""
    whole = settings(faces, tmp_path / "whole", epochs="3", runtime__precision="fp32")
    assert finish(command(whole)).returncode == 0
    mixed = settings(faces, tmp_path / "mixed", runtime__precision="fp32")
    zero = {"engine": "deepspeed", "deepspeed.zero_stage": "3"}
    for ranks, more in ((2, {"epochs": "1"}), (2, {"epochs": "2", **zero}), (1, {"epochs": "3"})):
        done = finish(command({**mixed, **more}, ranks))
        assert done.returncode == 0, done.stderr
    for mine, theirs in zip(records(tmp_path / "mixed", "epoch"), records(tmp_path / "whole", "epoch"), strict=True):
        assert mine["epoch"] == theirs["epoch"]
        assert mine["step"] == theirs["step"]
        assert mine["total"] == pytest.approx(theirs["total"], rel=0.02)
