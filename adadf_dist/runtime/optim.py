"""Adam, its learning rate by epoch and batch size, and its moments by parameter name."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adadf_dist.config import Config, OptimizerConfig

Moments = dict[str, dict[str, Tensor]]
"""Parameter name -> `step`, `exp_avg`, `exp_avg_sq`; what every engine's checkpoint holds."""


class Position(NamedTuple):
    """When a step is. All counted from 0."""

    epoch: int
    step: int
    """Over the whole run."""
    passed: float
    """Epochs gone by, fractions included."""


HEADS = ("auxiliary.attention.", "target.attention.")
"""Names of the attention heads' parameters begin so; a transformer's own attention is another thing."""
SCALING = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}
"""`optimizer.lr_scaling` -> power of the ratio of batches."""


def learning_rate(config: Config, position: Position) -> float:
    """The rate of a step of a run. Pure: nothing to save or restore."""
    optimizer = config.optimizer
    rate = optimizer.lr * batch_factor(optimizer, config.batch_size, position.passed)
    if optimizer.warmup_steps:
        rate *= min(1.0, (position.step + 1) / optimizer.warmup_steps)
    if optimizer.schedule == "cosine":
        return rate * (1 + math.cos(math.pi * position.epoch / config.epochs)) / 2
    return rate * optimizer.gamma**position.epoch


def batch_factor(config: OptimizerConfig, batch_size: int, passed: float) -> float:
    """What a global batch makes of the rate: from 1 in a straight line to its full factor in `scaling_warmup` epochs.

    Linear: Goyal et al. 2017, with their gradual warm-up. Root: the rule for Adam of Malladi et al. 2022.
    """
    full = math.pow(batch_size / config.scaling_from, SCALING[config.lr_scaling])
    if passed >= config.scaling_warmup:
        return full
    return 1 + (full - 1) * passed / config.scaling_warmup


def build_optimizer(model: nn.Module, config: OptimizerConfig, device: torch.device) -> torch.optim.Adam:
    """Adam over what is trained, in one fused kernel: fast, and free of host synchronisation."""
    heads: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (heads if name.startswith(HEADS) else others).append(parameter)
    groups = [{"params": others, "factor": 1.0}, {"params": heads, "factor": config.attention_lr_factor}]
    fused = device.type in ("cuda", "cpu")
    given = [group for group in groups if group["params"]]
    optimizer = torch.optim.Adam(given, weight_decay=config.weight_decay, fused=fused)
    set_learning_rate(optimizer, config.lr)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def moments_by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> Moments:
    return {
        name: {key: value.detach().to("cpu", copy=True) for key, value in optimizer.state[parameter].items()}
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }


def load_moments(model: nn.Module, optimizer: torch.optim.Optimizer, moments: Moments) -> None:
    optimizer.state.clear()
    for name, parameter in model.named_parameters():
        if name in moments:
            state = {key: value.clone() for key, value in moments[name].items()}
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = torch.empty_like(parameter).copy_(state[key])  # the parameter's memory format
            state["step"] = state["step"].to(parameter.device)
            optimizer.state[parameter] = state
