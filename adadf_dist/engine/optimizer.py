"""Build the optimizer with its parameter groups, and save and load its moments by parameter name."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from adadf_dist.config.schema import OptimizerConfig

Moments = dict[str, dict[str, Tensor]]
"""State of the optimizer: for each parameter name, the tensors `step`, `exp_avg` and `exp_avg_sq` of Adam and AdamW, or
`momentum_buffer` of SGD."""

ATTENTION_HEAD_PARAMS = ("auxiliary.attention.", "target.attention.")
"""Name prefixes of the attention heads' parameters; the attention layers of a transformer backbone do not match."""
CLASSIFIER_PARAMS = ("auxiliary.classifier.", "target.classifier.")
"""Name prefixes of the classifiers' parameters, which `model.pretrained` does not load either."""


def build_optimizer(model: nn.Module, config: OptimizerConfig, device: torch.device) -> torch.optim.Optimizer:
    """Build the optimizer over the trainable parameters.

    It uses the fused implementation where available, which is fast and needs no host synchronization.
    """
    groups, fused = group_parameters(model, config), device.type in ("cuda", "cpu")
    optimizer: torch.optim.Optimizer
    if config.name == "sgd":
        optimizer = torch.optim.SGD(groups, momentum=config.momentum, nesterov=True, fused=fused)
    elif config.name == "adamw":
        optimizer = torch.optim.AdamW(groups, fused=fused)
    else:
        optimizer = torch.optim.Adam(groups, fused=fused)
    set_learning_rate(optimizer, config.lr)
    return optimizer


def group_parameters(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Group the trainable parameters by learning-rate multiplier (`factor`) and weight decay, attention heads last."""
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_head = name.startswith(ATTENTION_HEAD_PARAMS)
        factor = 1.0 if name.startswith(CLASSIFIER_PARAMS) else config.pretrained_lr_mult
        decay = 0.0 if config.name == "adamw" and parameter.ndim < 2 else config.weight_decay
        key = (is_head, config.attention_lr_mult if is_head else factor, decay)
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": groups[key], "factor": key[1], "weight_decay": key[2]} for key in sorted(groups, key=itemgetter(0))
    ]


def moments_per_parameter(config: OptimizerConfig) -> int:
    """Return how many values the optimizer stores for each parameter."""
    return 1 if config.name == "sgd" else 2


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def optimizer_moments_by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> Moments:
    return {
        name: {key: value.detach().to("cpu", copy=True) for key, value in optimizer.state[parameter].items()}
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }


def load_moments(model: nn.Module, optimizer: torch.optim.Optimizer, moments: Moments) -> None:
    optimizer.state.clear()
    for name, parameter in model.named_parameters():
        if name in moments:
            optimizer.state[parameter] = {
                key: value.to(parameter.device, copy=True)
                if key == "step"
                else torch.empty_like(parameter).copy_(value)  # the parameter's memory format
                for key, value in moments[name].items()
            }
