"""Apply torch.compile to the parts of a training step that do not communicate: the extractor and the stages."""

from __future__ import annotations

import torch

from adadf_dist.config.schema import RuntimeConfig
from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError
from adadf_dist.method.model import DualBranch

COMPILE_MODES = 64
"""Maximum number of compiled versions of a code object.

Many stages share one code object, and each is compiled for training and evaluation at two batch sizes.
"""


def check_compile(config: RuntimeConfig, world: World) -> None:
    """Raise `UserError` if the device does not support the `runtime.compile` mode, or if nothing could be compiled."""
    if config.compile == "reduce-overhead" and world.device.type != "cuda":
        raise UserError(
            f"runtime.compile is reduce-overhead, but the device is {world.device.type}; set it to default or "
            "off, or train on a GPU"
        )
    if config.compile != "off" and world.size > 1 and config.sync_batch_norm:
        raise UserError(
            f"runtime.compile is {config.compile}, but BatchNorm synchronized across {world.size} ranks communicates "
            "in every layer, so nothing can be compiled; set runtime.sync_batch_norm = false, or runtime.compile = off"
        )


def compile_stages(model: DualBranch, config: RuntimeConfig, world: World) -> None:
    """Compile the extractor and both branches' stages in place, without changing parameter names.

    Heads and losses are not compiled, because their collectives would break the graph. Raises `UserError` if
    `check_compile` does.
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
    """Mark the start of a training step, so that CUDA graphs can reuse the memory of the previous step's outputs."""
    if mode == "reduce-overhead":
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
