"""Export to a torch.export program: weights and graph, usable without adadf_dist. Requires PyTorch 2.11 or newer."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.export.passes import move_to_device_pass
from torch.fx import GraphModule

from adadf_dist.errors import UserError, single_line
from adadf_dist.export.metadata import ExportMetadata
from adadf_dist.export.target_network import INPUT, TargetNetwork

METADATA = "adadf_dist.json"
"""Name of the JSON file with the metadata inside the exported archive."""


def trace(network: TargetNetwork, metadata: ExportMetadata) -> ExportedProgram:
    """Trace the network for its image size and any batch size. The program contains no local paths."""
    size = metadata.preprocessing.image_size
    example = torch.zeros(2, 3, size, size)  # a batch of 1 would be treated as constant
    program = torch.export.export(network, (example,), dynamic_shapes={INPUT: {0: Dim("n")}})
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def write(network: TargetNetwork, metadata: ExportMetadata, path: Path) -> None:
    torch.export.save(trace(network, metadata), path, extra_files={METADATA: json.dumps(metadata.to_metadata())})


def read(path: Path, device: torch.device) -> tuple[Callable[[Tensor], Tensor], ExportMetadata]:
    """Load the program. Raises `UserError` for a corrupt file or one not written by `write`.

    As with any `torch.export` program, only open files from sources you trust.
    """
    extra = {METADATA: ""}
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("not a zip archive")
        program = torch.export.load(path, extra_files=extra)
    except Exception as error:  # the loader raises arbitrary errors
        raise UserError(f"{path}: truncated or not a torch.export program ({single_line(error, 120)})") from None
    try:
        stored = json.loads(extra[METADATA] or "{}")
    except ValueError as error:
        raise UserError(f"{path}: corrupt metadata ({error}); export the model again") from None
    if device.type != "cpu":
        program = move_to_device_pass(program, device)
    return program.module(), ExportMetadata.from_metadata(stored, path)
