"""With every extension of the method on, training on n ranks equals training on one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.data.batch import Batch
from adadf_dist.data.sampling import rank_slice
from adadf_dist.distributed.world import World
from adadf_dist.engine.ddp import DDPEngine
from adadf_dist.method.class_distributions import ClassDistributions
from adadf_dist.method.losses import logit_offset
from adadf_dist.method.target_averages import MeanFused, SampleAverages
from adadf_dist.training.target_state import TargetState
from tests.helpers.ranks import run_ranks, single_process_world
from tests.helpers.steps import EXTENSIONS, over_ranks, take_extended_step

CLASSES, SAMPLES = 5, 13
EPOCHS = [[[0, 5, 3, 8, 1, 12, 7], [2, 9, 4, 0, 6]], [[4, 12, 1, 2, 6, 0, 10], [11, 3, 3, 9, 8, 5]]]
"""Samples of each global batch: 0 and 3 are drawn twice in an epoch, 10 and 11 only in the second, 7 only in the
first."""
BASELINE = {
    "loss.supervision": "votes",
    "loss.target_adjustment": 0.0,
    "loss.min_label_prob": 0.0,
    "class_distributions.sample_momentum": 0.0,
    "class_distributions.relative_threshold": 0.0,
}


def train_epochs(world: World, changed: dict[str, Any]) -> dict[str, Any]:
    """Two epochs in float64 on this rank's slices; returns what must not depend on the ranks."""
    config = build_config([ConfigLayer("test", {**EXTENSIONS, **changed})])
    torch.set_default_dtype(torch.float64)
    try:
        generator = torch.Generator().manual_seed(4)
        images = torch.randn(SAMPLES, 3, 32, 32, generator=generator)
        labels = torch.randint(CLASSES, (SAMPLES,), generator=generator)
        votes = torch.rand(SAMPLES, CLASSES, generator=generator)
        prior = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])
        engine, classes = (
            DDPEngine(config, CLASSES, world),
            ClassDistributions(CLASSES, config.class_distributions, world),
        )
        is_baseline = config.loss.is_baseline
        targets = TargetState(
            config,
            logit_offset(prior, config.loss.logit_adjustment),
            votes / votes.sum(dim=1, keepdim=True) if is_baseline else None,
            None if is_baseline else MeanFused(CLASSES, world),
            None if is_baseline else SampleAverages(SAMPLES, CLASSES, 0.6, world),
        )
        seen, states = [], []
        for epoch in EPOCHS:
            for batch in epoch:
                first, end = rank_slice(len(batch), world.rank, world.size)
                samples = torch.tensor(batch)[first:end]
                rows = Batch(images[samples], labels[samples], samples, first, len(batch))
                losses = take_extended_step(engine, classes, targets, rows, world)
                seen.append(over_ranks(losses, world))
            distributions = classes.finalize_epoch().distributions
            targets.finalize_epoch()
            states.append({name: dict(part.state_dict()) for name, part in targets.parts().items()})
        gradients = {n: p.grad.clone() for n, p in engine.model.named_parameters() if p.grad is not None}
        return {"losses": seen, "states": states, "gradients": gradients, "distributions": distributions}
    finally:
        torch.set_default_dtype(torch.float32)


def train_both(world: World) -> list[dict[str, Any]]:
    return [train_epochs(world, {}), train_epochs(world, BASELINE)]


def test_extensions_on_two_ranks_equal_one() -> None:
    """Of Ada-DF, and of the baseline trained on votes."""
    one = train_both(single_process_world())
    many = run_ranks(train_both, 2)
    for rank in many:
        torch.testing.assert_close(rank, one, rtol=1e-9, atol=1e-9)
    (first, _), (second, _) = many
    for name, part in first["states"][-1].items():
        for field, value in part.items():
            assert torch.equal(value, second["states"][-1][name][field]), "ranks differ"
    mean = first["states"][-1]["mean_fused"]["mean"]
    assert mean.sum().item() == pytest.approx(1)
    assert mean.max() - mean.min() > 0.01  # the adjustment is not constant
