"""Learning rates and the weight average against their formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from adadf_dist.config.learning_rate import Position, learning_rate
from adadf_dist.config.schema import Config, OptimizerConfig
from adadf_dist.engine.base import update_ema
from adadf_dist.engine.optimizer import (
    build_optimizer,
    load_moments,
    moments_per_parameter,
    optimizer_moments_by_name,
    set_learning_rate,
)


def test_exponential_schedule_by_formula() -> None:
    config = Config(optimizer=OptimizerConfig(lr=1e-3, lr_gamma=0.9))
    rates = [learning_rate(config, Position(epoch, 100, epoch + 0.5)) for epoch in (0, 1, 10)]
    assert rates == pytest.approx([1e-3, 9e-4, 1e-3 * 0.9**10])


def test_cosine_schedule_by_formula() -> None:
    config = Config(epochs=4, optimizer=OptimizerConfig(lr=2e-3, schedule="cosine"))
    rates = [learning_rate(config, Position(epoch, 100, epoch)) for epoch in range(4)]
    assert rates == pytest.approx([1e-3 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)])


def test_cosine_by_step_decays_from_the_end_of_the_warm_up_to_zero() -> None:
    """Five epochs of four steps, of which five steps (a quarter) are warm-up: 15 steps of decay."""
    for warmup in (5, 0.25):
        config = Config(epochs=5, optimizer=OptimizerConfig(lr=2e-3, schedule="cosine_by_step", warmup_steps=warmup))
        rates = [learning_rate(config, Position(step // 4, step, step / 4, 4)) for step in range(20)]
        decay = [1e-3 * (1 + math.cos(math.pi * step / 15)) for step in range(15)]
        assert rates == pytest.approx([4e-4, 8e-4, 1.2e-3, 1.6e-3, 2e-3, *decay])
    plain = Config(epochs=2, optimizer=OptimizerConfig(lr=2e-3, schedule="cosine_by_step"))
    rates = [learning_rate(plain, Position(step // 4, step, step / 4, 4)) for step in range(9)]
    assert rates == pytest.approx([1e-3 * (1 + math.cos(math.pi * step / 8)) for step in range(9)])
    assert rates[-1] == 0  # after the last step
    # steps on random images, whose run has no known length
    assert learning_rate(plain, Position(0, 100, 0.0)) == pytest.approx(2e-3)


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


LR, DECAY, MOMENTUM = 0.05, 0.1, 0.8

Update = Callable[[Tensor, Tensor, float, dict[str, Tensor], int], Tensor]
"""A parameter, its gradient, its learning rate, its state and the step from 1: the updated parameter."""


def adamw(p: Tensor, g: Tensor, lr: float, state: dict[str, Tensor], step: int) -> Tensor:
    """Loshchilov and Hutter 2019, algorithm 2."""
    if p.ndim > 1:
        p = p - lr * DECAY * p
    state["m"] = 0.9 * state.get("m", 0 * g) + 0.1 * g
    state["v"] = 0.999 * state.get("v", 0 * g) + 0.001 * g * g
    m, v = state["m"] / (1 - 0.9**step), state["v"] / (1 - 0.999**step)
    return p - lr * m / (v.sqrt() + 1e-8)


def adam(p: Tensor, g: Tensor, lr: float, state: dict[str, Tensor], step: int) -> Tensor:
    """Kingma and Ba 2015, with an L2 penalty on every parameter."""
    g = g + DECAY * p
    state["m"] = 0.9 * state.get("m", 0 * g) + 0.1 * g
    state["v"] = 0.999 * state.get("v", 0 * g) + 0.001 * g * g
    m, v = state["m"] / (1 - 0.9**step), state["v"] / (1 - 0.999**step)
    return p - lr * m / (v.sqrt() + 1e-8)


def sgd(p: Tensor, g: Tensor, lr: float, state: dict[str, Tensor], step: int) -> Tensor:
    """Nesterov momentum of Sutskever et al. 2013, as gradients are written there, with an L2 penalty."""
    g = g + DECAY * p
    state["velocity"] = MOMENTUM * state["velocity"] + g if step > 1 else g
    return p - lr * (g + MOMENTUM * state["velocity"])


def set_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(("name", "update"), [("adam", adam), ("adamw", adamw), ("sgd", sgd)])
def test_steps_equal_a_naive_recomputation(name: Literal["adam", "adamw", "sgd"], update: Update) -> None:
    torch.manual_seed(0)
    model = Small()
    config = OptimizerConfig(
        name=name, momentum=MOMENTUM, weight_decay=DECAY, attention_lr_mult=0.5, pretrained_lr_mult=0.1
    )
    optimizer = build_optimizer(model, config, torch.device("cpu"))
    assert all(group["fused"] for group in optimizer.param_groups)
    factors = {"body": 0.1, "target.attention": 0.5, "target.classifier": 1.0}
    wanted = {key: p.detach().double() for key, p in model.named_parameters()}
    states: dict[str, dict[str, Tensor]] = {key: {} for key in wanted}
    for step in (1, 2, 3):
        set_gradients(model, step)
        set_learning_rate(optimizer, LR / step)
        optimizer.step()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None
            rate = LR / step * factors[key.rpartition(".")[0]]
            wanted[key] = update(wanted[key], parameter.grad.double(), rate, states[key], step)
            torch.testing.assert_close(parameter.detach().double(), wanted[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_moments_restored_by_name_continue_bit_for_bit(name: Literal["adam", "adamw", "sgd"]) -> None:
    torch.manual_seed(0)
    config = OptimizerConfig(name=name, weight_decay=0.01, lr=0.1)
    model, cpu = Small(), torch.device("cpu")
    optimizer = build_optimizer(model, config, cpu)
    set_gradients(model, 1)
    optimizer.step()
    copy = Small()
    copy.load_state_dict(model.state_dict())
    resumed, moments = build_optimizer(copy, config, cpu), optimizer_moments_by_name(model, optimizer)
    load_moments(copy, resumed, moments)
    for of_parameter in moments.values():
        assert len(of_parameter.keys() - {"step"}) == moments_per_parameter(config)
    for each, its in ((model, optimizer), (copy, resumed)):
        for step in (2, 3):
            set_gradients(each, step)
            its.step()
    for one, other in zip(model.parameters(), copy.parameters(), strict=True):
        assert torch.equal(one, other)


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
