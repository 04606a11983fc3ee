"""Adam, its learning rate by epoch, and its moments by parameter name."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from adadf_dist.config import OptimizerConfig

Moments = dict[str, dict[str, Tensor]]
"""Parameter name -> `step`, `exp_avg`, `exp_avg_sq`; what every engine's checkpoint holds."""


def learning_rate(config: OptimizerConfig, epochs: int, epoch: int, step: int) -> float:
    """The rate of a step of a run of `epochs`; epoch and step counted from 0. Pure: nothing to save or restore."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "cosine":
        return config.lr * warmup * (1 + math.cos(math.pi * epoch / epochs)) / 2
    return config.lr * warmup * config.gamma**epoch


def build_optimizer(model: nn.Module, config: OptimizerConfig, device: torch.device) -> torch.optim.Adam:
    """Adam over what is trained, in one fused kernel: fast, and free of host synchronisation."""
    heads: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (heads if ".attention." in name else others).append(parameter)
    groups = [{"params": others, "factor": 1.0}, {"params": heads, "factor": config.attention_lr_factor}]
    fused = device.type in ("cuda", "cpu")
    return torch.optim.Adam([g for g in groups if g["params"]], weight_decay=config.weight_decay, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def moments_by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> Moments:
    return {
        name: {key: value.detach().cpu() for key, value in optimizer.state[parameter].items()}
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }


def load_moments(model: nn.Module, optimizer: torch.optim.Optimizer, moments: Moments) -> None:
    for name, parameter in model.named_parameters():
        if name in moments:
            state = {key: value.clone() for key, value in moments[name].items()}
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = torch.empty_like(parameter).copy_(state[key])  # the parameter's memory format
            state["step"] = state["step"].to(parameter.device)
            optimizer.state[parameter] = state
