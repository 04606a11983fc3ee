"""Training on n ranks equals training on one, with even and uneven slices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adadf_dist.config.load import ConfigLayer, build_config, override
from adadf_dist.data.batch import Batch
from adadf_dist.data.dataset import open_dataset
from adadf_dist.data.sampling import rank_slice, split_batches
from adadf_dist.distributed.world import World
from adadf_dist.engine.batch_norm import SyncBatchNorm2d
from adadf_dist.engine.ddp import DDPEngine
from adadf_dist.method.class_distributions import ClassDistributions
from adadf_dist.method.losses import BatchSlice
from adadf_dist.metrics.evaluator import evaluate
from adadf_dist.tracking.sample_history import SampleHistoryRecorder
from tests.helpers.ranks import run_ranks, single_process_world
from tests.helpers.steps import over_ranks, take_step

CLASSES = 7
CONFIG = build_config(
    [ConfigLayer("test", {"loss.rank_margin": 1.0, "runtime.precision": "fp32", "model.backbone": "resnet10"})]
)
"""With the margin at its widest the rank regularisation is always active."""


def batch_of(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(rows, 3, 32, 32, generator=generator, dtype=torch.float64)
    return images, torch.randint(CLASSES, (rows,), generator=generator)


def bounds(slices: tuple[int, ...], rank: int) -> tuple[int, int]:
    first = sum(slices[:rank])
    return first, first + slices[rank]


def train_steps(world: World, slices: tuple[int, ...], steps: int) -> dict[str, Any]:
    """`steps` steps in float64 on this rank's slice of each batch; returns what must not depend on the ranks."""
    torch.set_default_dtype(torch.float64)
    try:
        engine = DDPEngine(CONFIG, CLASSES, world)
        classes = ClassDistributions(CLASSES, CONFIG.class_distributions, world)
        total = sum(slices)
        history = SampleHistoryRecorder(total, CLASSES, world, listed=[0, total - 1])
        losses_seen, gradients = [], {}
        for step in range(steps):
            images, labels = batch_of(total, step)
            first, end = bounds(slices, world.rank) if world.size > 1 else (0, total)
            images, labels = images[first:end], labels[first:end]
            place = (world, BatchSlice(first, total))
            output, losses = take_step(engine, classes, (images, labels), place, CONFIG.loss)
            if step == 0:
                gradients = {n: p.grad.clone() for n, p in engine.model.named_parameters() if p.grad is not None}
            history.update(Batch(images, labels, torch.arange(first, end), first, total), output, losses)
            losses_seen.append(over_ranks(losses, world).tolist())
        commit = classes.finalize_epoch()
        return {
            "losses": losses_seen,
            "gradients": gradients,
            "model": engine.state_dict()["model"],
            "distributions": commit.distributions,
            "means": commit.means,
            "history": history.state_dict(),
        }
    finally:
        torch.set_default_dtype(torch.float32)


def assert_close(mine: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert mine.keys() == theirs.keys()
    for name in mine:
        torch.testing.assert_close(
            mine[name], theirs[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: n + m
        )


@pytest.mark.parametrize("slices", [(8, 8), (9, 4), (5, 4, 4)])
def test_step_on_n_ranks_equals_step_on_one(slices: tuple[int, ...]) -> None:
    """Losses, gradients (BatchNorm's included), Adam's step, class distributions, history."""
    one = train_steps(single_process_world(), slices, 1)
    assert one["losses"][0][3] > 0.5  # rank regularization is active
    for many in run_ranks(train_steps, len(slices), slices, 1):
        torch.testing.assert_close(many["losses"], one["losses"], rtol=1e-9, atol=1e-9)
        assert_close(many["gradients"], one["gradients"], 1e-9)
        assert_close(
            {"d": many["distributions"], "m": many["means"]}, {"d": one["distributions"], "m": one["means"]}, 1e-9
        )
        # the history is stored in float32
        assert_close(many["history"], one["history"], 1e-6)


@pytest.mark.parametrize(
    ("slices", "steps"),
    [
        ((9, 4), 5),
        pytest.param((9, 4), 30, marks=pytest.mark.slow),
        pytest.param((4, 3, 3, 3), 30, marks=pytest.mark.slow),
    ],
)
def test_ranks_stay_identical_over_steps(slices: tuple[int, ...], steps: int) -> None:
    """Losses of each step and the class distributions in float64; weights bit-identical on every rank."""
    one = train_steps(single_process_world(), slices, steps)
    ranks = run_ranks(train_steps, len(slices), slices, steps, timeout=300)
    for many in ranks:
        torch.testing.assert_close(many["losses"], one["losses"], rtol=1e-9, atol=1e-9)
        for name in ("distributions", "means"):
            torch.testing.assert_close(many[name], one[name], rtol=1e-9, atol=1e-9)
        assert all(torch.equal(ranks[0]["model"][n], many["model"][n]) for n in many["model"]), "ranks differ"


def normalizing_apart(world: World) -> dict[str, Any]:
    """Two steps with local BatchNorm, and the running statistics before and after `consolidate`."""
    config = override(CONFIG, {"runtime.sync_batch_norm": False, "loss.supervision": "one_hot"})
    engine = DDPEngine(config, CLASSES, world)
    for number in range(2):
        images, labels = (tensor[7 * world.rank :][:7] for tensor in batch_of(14, number))
        output = engine.forward(images.float())
        engine.step(nn.functional.cross_entropy(output.target_logits, labels))
    norm = engine.model.extractor.bn1
    before = torch.stack([norm.running_mean, norm.running_var])
    engine.sync_for_eval()
    predicted = engine.predict(batch_of(4, 9)[0].float())
    state = {**engine.state_dict()["model"]}
    return {
        "before": before,
        "after": torch.stack([norm.running_mean, norm.running_var]),
        "predicted": predicted,
        "model": state,
    }


def test_local_batch_norm_statistics_are_averaged_before_use() -> None:
    one, two = run_ranks(normalizing_apart, 2)
    assert not torch.equal(one["before"], two["before"])
    mean = (one["before"] + two["before"]) / 2
    for rank in (one, two):
        torch.testing.assert_close(rank["after"], mean)
        for row, name in enumerate(("running_mean", "running_var")):
            torch.testing.assert_close(rank["model"][f"extractor.bn1.{name}"], mean[row])
    assert torch.equal(one["predicted"], two["predicted"])


def local_gradients(world: World, slices: tuple[int, ...]) -> float:
    first, end = bounds(slices, world.rank) if world.size > 1 else (0, sum(slices))
    weights = torch.linspace(0.1, 0.9, sum(slices), dtype=torch.float64)
    mine = weights[first:end].clone().requires_grad_()
    gathered = world.gather(mine, first, sum(slices))
    assert torch.equal(gathered.detach(), weights)
    # a loss computed completely on every rank: its gradient, averaged over ranks, equals that of one rank
    (gathered.pow(3).sum()).backward()
    assert mine.grad is not None
    torch.testing.assert_close(mine.grad / world.size, 3 * weights[first:end] ** 2, rtol=1e-12, atol=1e-12)
    return float(gathered.sum())


@pytest.mark.parametrize("slices", [(3, 3), (9, 4), (1, 0, 4)])
def test_gather_backward_sums_gradients_and_returns_slices(slices: tuple[int, ...]) -> None:
    run_ranks(local_gradients, len(slices), slices)


def normalize(world: World, slices: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> list[Tensor]:
    total = sum(slices)
    first, end = bounds(slices, world.rank) if world.size > 1 else (0, total)
    generator = torch.Generator().manual_seed(0)
    data = 5 + 2 * torch.randn(total, 6, 4, 5, generator=generator, dtype=torch.float64)
    upstream = torch.randn(total, 6, 4, 5, generator=generator, dtype=torch.float64)
    layer = nn.BatchNorm2d(6, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(0.5, 1.5, 6))
        layer.bias.copy_(torch.linspace(-1, 1, 6))
    if world.size > 1:
        layer = SyncBatchNorm2d.from_batch_norm(layer, world)
    layer = layer.to(torch.float32 if dtype == torch.bfloat16 else dtype)
    rows = data[first:end].to(dtype)
    if channels_last:
        rows = rows.contiguous(memory_format=torch.channels_last)
    rows.requires_grad_()
    output = layer(rows)
    output.backward(upstream[first:end].to(output.dtype))
    assert rows.grad is not None
    assert layer.weight.grad is not None
    assert layer.bias.grad is not None
    weight_grad, bias_grad = (
        world.all_reduce_sum_(layer.weight.grad.clone()),
        world.all_reduce_sum_(layer.bias.grad.clone()),
    )
    assert layer.running_mean is not None
    assert layer.running_var is not None
    shared = [weight_grad, bias_grad, layer.running_mean, layer.running_var]
    return [output.detach().double(), rows.grad.double(), *(t.detach().double() for t in shared)]


@pytest.mark.parametrize("slices", [(8, 8), (9, 4), (2, 3, 8)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_synchronized_batch_norm_equals_whole_batch(slices: tuple[int, ...], channels_last: bool) -> None:
    one = normalize(single_process_world(), slices, torch.float64, channels_last)
    ranks = run_ranks(normalize, len(slices), slices, torch.float64, channels_last)
    for place in (0, 1):  # outputs and input gradients: the ranks' rows, concatenated
        torch.testing.assert_close(torch.cat([r[place] for r in ranks]), one[place], rtol=1e-10, atol=1e-10)
    for many in ranks:
        for place in range(2, 6):
            torch.testing.assert_close(many[place], one[place], rtol=1e-10, atol=1e-10)


def test_synchronized_batch_norm_in_bf16() -> None:
    one = normalize(single_process_world(), (8, 8), torch.float64, True)
    ranks = run_ranks(normalize, 2, (8, 8), torch.bfloat16, True)
    torch.testing.assert_close(torch.cat([r[0] for r in ranks]), one[0], rtol=0.02, atol=0.05)
    torch.testing.assert_close(torch.cat([r[1] for r in ranks]), one[1], rtol=0.05, atol=0.05)


def control(world: World) -> dict[str, object]:
    shared = world.broadcast_object({"from": world.rank})
    collected = world.all_gather_object(world.rank * 10)
    before = world.should_stop()
    if world.rank == 1:
        world.request_stop()
    return {"shared": shared, "collected": collected, "before": before, "after": world.should_stop()}


def test_decisions_are_the_same_on_every_rank() -> None:
    for result in run_ranks(control, 2):
        assert result == {"shared": {"from": 0}, "collected": [0, 10], "before": False, "after": True}


def class_state(world: World, state: dict[str, Tensor] | None, rows: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(rows, CLASSES, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (rows,), generator=generator)
    classes = ClassDistributions(CLASSES, CONFIG.class_distributions, world)
    if state is not None:
        classes.load_state_dict(state)
    first, end = rank_slice(rows, world.rank, world.size)
    classes.observe(logits[first:end], labels[first:end])
    return classes.state_dict()


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (3, 2)])
def test_class_sums_resume_on_another_number_of_ranks(before: int, after: int) -> None:
    """Half an epoch on some ranks, the other half on others: each sample counts once."""
    whole = class_state(single_process_world(), class_state(single_process_world(), None, 13), 13)
    first = run_ranks(class_state, before, None, 13) if before > 1 else [class_state(single_process_world(), None, 13)]
    second = (
        run_ranks(class_state, after, first[0], 13)
        if after > 1
        else [class_state(single_process_world(), first[0], 13)]
    )
    for state in second:
        torch.testing.assert_close(state["pending"], whole["pending"], rtol=1e-12, atol=1e-12)
    assert whole["pending"][:, -1].sum() == 26


class Table:
    """A network of fixed logits: an image's first pixel is its sample number."""

    def __init__(self, samples: int) -> None:
        self.logits = torch.randn(samples, CLASSES, generator=torch.Generator().manual_seed(3))

    def predict(self, images: Tensor) -> Tensor:
        return self.logits[images[:, 0, 0, 0].long()]


def evaluation(world: World, folder: str) -> dict[str, object]:
    split = open_dataset(folder).split("test")
    labels = torch.from_numpy(split.labels)

    def batches() -> Iterator[Batch]:
        for members in map(torch.from_numpy, split_batches(torch.arange(len(split)).numpy(), 8)):
            first, end = rank_slice(len(members), world.rank, world.size)
            samples = members[first:end]
            images = samples.float().view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
            yield Batch(images, labels[samples], samples, first, len(members))

    return evaluate(Table(len(split)), batches(), split, world).to_dict()


def naive_evaluation(folder: str) -> dict[str, object]:
    split = open_dataset(folder).split("test")
    p = Table(len(split)).logits.double().softmax(dim=1).numpy()
    confusion = [[0] * CLASSES for _ in range(CLASSES)]
    divergence = []
    assert split.votes is not None
    for row, label in enumerate(split.labels.tolist()):
        confusion[label][int(p[row].argmax())] += 1
        q = split.votes[row] / split.votes[row].sum()
        divergence.append(sum(float(a * np.log(a / b)) for a, b in zip(q, p[row], strict=True) if a > 0))
    correct = sum(confusion[c][c] for c in range(CLASSES))
    return {
        "accuracy": correct / len(split),
        "mean_class_accuracy": float(np.mean([confusion[c][c] / sum(confusion[c]) for c in range(CLASSES)])),
        "cross_entropy": float(-np.mean([np.log(p[row, label]) for row, label in enumerate(split.labels)])),
        "votes_kl": float(np.mean(divergence)),
        "confusion": confusion,
    }


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_evaluation_counts_each_sample_once(ranks: int, faces: Path) -> None:
    """30 samples in batches of 8, 8, 7 and 7 over 1, 2 and 3 ranks, against a loop over the samples."""
    wanted = naive_evaluation(str(faces))
    found = run_ranks(evaluation, ranks, str(faces)) if ranks > 1 else [evaluation(single_process_world(), str(faces))]
    for result in found:
        assert result["samples"] == 30
        assert result["confusion"] == wanted["confusion"]
        for name in ("accuracy", "mean_class_accuracy", "cross_entropy", "votes_kl"):
            assert result[name] == pytest.approx(wanted[name], rel=1e-6)
