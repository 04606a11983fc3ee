"""Learning rates and the weight average against their formulas."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import nn

from adadf_dist.config.learning_rate import Position, learning_rate
from adadf_dist.config.schema import Config, OptimizerConfig
from adadf_dist.engine.base import update_ema
from adadf_dist.engine.optimizer import build_optimizer, set_learning_rate


def test_exponential_schedule_by_formula() -> None:
    config = Config(optimizer=OptimizerConfig(lr=1e-3, lr_gamma=0.9))
    rates = [learning_rate(config, Position(epoch, 100, epoch + 0.5)) for epoch in (0, 1, 10)]
    assert rates == pytest.approx([1e-3, 9e-4, 1e-3 * 0.9**10])


def test_cosine_schedule_by_formula() -> None:
    config = Config(epochs=4, optimizer=OptimizerConfig(lr=2e-3, schedule="cosine"))
    rates = [learning_rate(config, Position(epoch, 100, epoch)) for epoch in range(4)]
    assert rates == pytest.approx([1e-3 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)])


def test_warm_up_rises_linearly() -> None:
    config = Config(optimizer=OptimizerConfig(lr=1e-3, warmup_steps=10))
    rates = [learning_rate(config, Position(0, step, 0.0)) for step in (0, 4, 9, 10)]
    assert rates == pytest.approx([1e-4, 5e-4, 1e-3, 1e-3])


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1.0), ("sqrt", 4.0), ("linear", 16.0)])
def test_large_batch_scales_the_learning_rate_with_warm_up(
    scaling: Literal["none", "sqrt", "linear"], factor: float
) -> None:
    """Batch size 1024 where the recipe has 64, with two warm-up epochs: 16 times the samples per step."""
    optimizer = OptimizerConfig(lr=1e-3, lr_gamma=1.0, lr_scaling=scaling, scaling_warmup_epochs=2.0)
    config = Config(batch_size=1024, optimizer=optimizer)
    rates = [learning_rate(config, Position(int(passed), 0, passed)) for passed in (0.0, 0.5, 1.0, 2.0, 30.0)]
    quarter = 1 + (factor - 1) / 4
    half = 1 + (factor - 1) / 2
    assert rates == pytest.approx([1e-3, 1e-3 * quarter, 1e-3 * half, 1e-3 * factor, 1e-3 * factor])


def test_smaller_batch_has_a_smaller_learning_rate() -> None:
    optimizer = OptimizerConfig(lr=1e-3, lr_scaling="sqrt", base_batch_size=64, scaling_warmup_epochs=0.0)
    assert learning_rate(Config(batch_size=16, optimizer=optimizer), Position(0, 0, 0.0)) == pytest.approx(5e-4)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2)
        self.target = nn.ModuleDict({"attention": nn.Linear(2, 1), "classifier": nn.Linear(2, 2)})
        self.register_buffer("seen", torch.zeros(()))


def test_attention_heads_have_their_own_learning_rate() -> None:
    model = Small()
    optimizer = build_optimizer(model, OptimizerConfig(attention_lr_mult=0.02), torch.device("cpu"))
    set_learning_rate(optimizer, 0.1)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.002 if "attention" in name else 0.1)


def test_weight_average_equals_a_naive_loop() -> None:
    torch.manual_seed(0)
    average, model = Small(), Small()
    wanted = {name: p.detach().clone() for name, p in average.named_parameters()}
    for step in range(5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model.seen.fill_(step)
        update_ema(average, model, decay=0.75)
        wanted = {n: 0.75 * wanted[n] + 0.25 * p.detach() for n, p in model.named_parameters()}
    for name, parameter in average.named_parameters():
        torch.testing.assert_close(parameter.detach(), wanted[name])
    assert average.seen == 4
