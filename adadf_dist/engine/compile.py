"""torch.compile for the parts of a step without communication: the extractor and the branches' stages."""

from __future__ import annotations

import torch

from adadf_dist.config.schema import RuntimeConfig
from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError
from adadf_dist.method.model import DualBranch

COMPILE_MODES = 64
"""Recompile limit per code object: stages share code, each compiled for training and evaluation at two batch sizes."""


def check_compile(config: RuntimeConfig, world: World) -> None:
    """Raise `UserError` if `runtime.compile` is unavailable or would compile nothing."""
    if config.compile == "reduce-overhead" and world.device.type != "cuda":
        raise UserError(
            f"runtime.compile is reduce-overhead, but the device is {world.device.type}; set it to default or off"
        )
    if config.compile != "off" and world.size > 1 and config.sync_batch_norm:
        raise UserError(
            f"runtime.compile is {config.compile}, but BatchNorm over {world.size} ranks communicates in every "
            "layer, so nothing can be compiled; set runtime.sync_batch_norm = false, or runtime.compile = off"
        )


def compile_stages(model: DualBranch, config: RuntimeConfig, world: World) -> None:
    """Compile the extractor and the branches' stages in place; parameter names do not change.

    Heads and losses stay eager: their collectives would break the graph. Raises `UserError`.
    """
    check_compile(config, world)
    if config.compile == "off":
        return
    torch._dynamo.config.recompile_limit = COMPILE_MODES
    mode = "reduce-overhead" if config.compile == "reduce-overhead" else None
    for branch in (model.auxiliary, model.target):
        if branch is not None:
            branch.stages.compile(mode=mode)
    model.extractor.compile(mode=mode)


def mark_step_begin(mode: str) -> None:
    """Mark the start of a step, so that CUDA graphs may reuse the outputs of the previous one."""
    if mode == "reduce-overhead":
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
