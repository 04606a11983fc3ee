"""Load a trained network from any supported file for inference."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from adadf_dist.checkpoint.trained_model import load_trained_model
from adadf_dist.data.preprocessing import Preprocessing
from adadf_dist.distributed.world import NO_GPU, DeviceName
from adadf_dist.errors import UserError
from adadf_dist.export import safetensors_format, torch_export_format
from adadf_dist.export.metadata import ExportMetadata, make_metadata
from adadf_dist.export.target_network import TargetNetwork

ONNX_FILE = "adadf_dist.export.onnx_format"
"""Module for ONNX files. Imported lazily, because it needs optional packages."""
KINDS = (".safetensors", ".onnx", ".pt2")
"""Extensions of exported files."""


class ExportedModel(NamedTuple):
    """A trained network on a device, in fp32 regardless of the training precision, so that all formats agree."""

    metadata: ExportMetadata
    device: torch.device
    """Device on which `compute` expects the images and returns the logits."""
    compute: Callable[[Tensor], Tensor]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.metadata.classes

    @property
    def preprocessing(self) -> Preprocessing:
        return self.metadata.preprocessing

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return logits [n, C] for images [n, 3, H, W], or their mean over ten crops for images [n, 10, 3, H, W]."""
        crops = images.shape[1] if images.ndim == 5 else 1
        logits = self.compute(images.flatten(0, 1) if crops > 1 else images)
        return logits.view(-1, crops, logits.shape[1]).mean(dim=1)


def load_model(path: Path, device_name: DeviceName = "auto") -> ExportedModel:
    """Load a model from a run folder (its selected epoch), a checkpoint or an exported file.

    Raises `UserError` if the file or device is missing, or if the file is invalid.
    """
    if path.suffix in KINDS and not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".onnx":
        onnx_file = import_module(ONNX_FILE)
        device = pick_device(device_name, onnx_file.has_cuda())
        network = onnx_file.OnnxNetwork(path, device)
        return ExportedModel(network.metadata, torch.device("cpu"), network)
    device = pick_device(device_name, torch.cuda.is_available())
    if path.suffix == ".pt2":
        compute, metadata = torch_export_format.read(path, device)
        return ExportedModel(metadata, device, compute)
    if path.suffix == ".safetensors":
        target, metadata = safetensors_format.read(path)
    else:
        trained = load_trained_model(path)
        target, metadata = TargetNetwork(trained.model), make_metadata(trained)
    return ExportedModel(metadata, device, target.to(device))


def pick_device(name: DeviceName, has_cuda: bool) -> torch.device:
    """Return the device to use. Raises `UserError` if `cuda` is requested but no GPU is available."""
    if name == "cuda" and not has_cuda:
        raise UserError(NO_GPU)
    return torch.device("cpu" if name == "cpu" or not has_cuda else "cuda")
