"""torch.compile of what a step computes without other ranks: extractor and branches."""

from __future__ import annotations

import torch

from adadf_dist.errors import UserError
from adadf_dist.method.model import DualBranch


def compile_parts(model: DualBranch, how: str, device: torch.device) -> None:
    """Compile extractor and branches in place; names of parameters stay as they are.

    The losses stay eager: their collectives would cut the graph to pieces. Raises `UserError`.
    """
    if how == "off":
        return
    if how == "cuda-graphs" and device.type != "cuda":
        raise UserError(f"runtime.compile is cuda-graphs, but the device is {device.type}; set it to default or off")
    mode = "reduce-overhead" if how == "cuda-graphs" else None
    for part in (model.extractor, model.auxiliary, model.target):
        if part is not None:
            part.compile(mode=mode)


def new_step(how: str) -> None:
    """Tell CUDA graphs that the outputs of the last step are no longer wanted."""
    if how == "cuda-graphs":
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
