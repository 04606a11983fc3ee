"""Build the Adam optimizer with its parameter groups, and save and load its moments by parameter name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adadf_dist.config.schema import OptimizerConfig

Moments = dict[str, dict[str, Tensor]]
"""Adam's state: for each parameter name, the tensors `step`, `exp_avg` and `exp_avg_sq`."""


ATTENTION_HEAD_PARAMS = ("auxiliary.attention.", "target.attention.")
"""Name prefixes of the attention heads' parameters; the attention layers of a transformer backbone do not match."""


def build_optimizer(model: nn.Module, config: OptimizerConfig, device: torch.device) -> torch.optim.Adam:
    """Build Adam over the trainable parameters, with a separate learning rate factor for the attention heads.

    It uses the fused implementation where available, which is fast and needs no host synchronization.
    """
    heads: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (heads if name.startswith(ATTENTION_HEAD_PARAMS) else others).append(parameter)
    groups = [{"params": others, "factor": 1.0}, {"params": heads, "factor": config.attention_lr_mult}]
    fused = device.type in ("cuda", "cpu")
    nonempty = [group for group in groups if group["params"]]
    optimizer = torch.optim.Adam(nonempty, weight_decay=config.weight_decay, fused=fused)
    set_learning_rate(optimizer, config.lr)
    return optimizer


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
            state = {key: value.clone() for key, value in moments[name].items()}
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = torch.empty_like(parameter).copy_(state[key])  # the parameter's memory format
            state["step"] = state["step"].to(parameter.device)
            optimizer.state[parameter] = state
