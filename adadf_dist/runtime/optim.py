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
    trained = [p for p in model.parameters() if p.requires_grad]
    fused = device.type in ("cuda", "cpu")
    return torch.optim.Adam(trained, lr=config.lr, weight_decay=config.weight_decay, fused=fused)


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
