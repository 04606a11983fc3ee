"""Learning rates and the average of the weights, by their formulas written out again."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from adadf_dist.config import OptimizerConfig
from adadf_dist.runtime.engine import update_average
from adadf_dist.runtime.optim import build_optimizer, learning_rate, set_learning_rate


def test_exponential() -> None:
    config = OptimizerConfig(lr=1e-3, gamma=0.9)
    assert [learning_rate(config, 75, epoch, 100) for epoch in (0, 1, 10)] == pytest.approx(
        [1e-3, 9e-4, 1e-3 * 0.9**10]
    )


def test_cosine() -> None:
    config = OptimizerConfig(lr=2e-3, schedule="cosine")
    rates = [learning_rate(config, 4, epoch, 100) for epoch in range(4)]
    assert rates == pytest.approx([1e-3 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)])


def test_warm_up_rises_evenly() -> None:
    config = OptimizerConfig(lr=1e-3, warmup_steps=10)
    assert [learning_rate(config, 75, 0, step) for step in (0, 4, 9, 10)] == pytest.approx([1e-4, 5e-4, 1e-3, 1e-3])


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2)
        self.target = nn.ModuleDict({"attention": nn.Linear(2, 1), "classifier": nn.Linear(2, 2)})
        self.register_buffer("seen", torch.zeros(()))


def test_the_attention_heads_have_a_rate_of_their_own() -> None:
    model = Small()
    optimizer = build_optimizer(model, OptimizerConfig(attention_lr_factor=0.02), torch.device("cpu"))
    set_learning_rate(optimizer, 0.1)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.002 if "attention" in name else 0.1)


def test_the_average_by_a_naive_loop() -> None:
    torch.manual_seed(0)
    average, model = Small(), Small()
    wanted = {name: p.detach().clone() for name, p in average.named_parameters()}
    for step in range(5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model.seen.fill_(step)
        update_average(average, model, decay=0.75)
        wanted = {n: 0.75 * wanted[n] + 0.25 * p.detach() for n, p in model.named_parameters()}
    for name, parameter in average.named_parameters():
        torch.testing.assert_close(parameter.detach(), wanted[name])
    assert average.seen == 4
