"""Write and read safetensors files. They contain only data and are safe to load from untrusted sources."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from adadf_dist.engine.base import init_model
from adadf_dist.errors import UserError, single_line
from adadf_dist.export.metadata import ExportMetadata
from adadf_dist.export.target_network import TargetNetwork


def write(network: TargetNetwork, metadata: ExportMetadata, path: Path) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    try:
        save_file(tensors, path, metadata={"format": "pt", **metadata.to_metadata()})
    except SafetensorError as error:  # also for an unwritable folder
        raise UserError(f"{path}: cannot be written ({single_line(error, 120)}); choose another path") from None


def read(path: Path) -> tuple[TargetNetwork, ExportMetadata]:
    """Load the network. Raises `UserError` for a corrupt file or one not written by `write`."""
    try:
        with safe_open(path, framework="pt") as file:
            stored = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: truncated or not a safetensors file ({single_line(error, 120)})") from None
    metadata = ExportMetadata.from_metadata(stored, path)
    network = TargetNetwork(init_model(metadata.config(path), len(metadata.classes)))
    own = network.state_dict()
    for name in [*own, *tensors]:
        if name not in own or name not in tensors or own[name].shape != tensors[name].shape:
            raise UserError(
                f"{path}: tensor {name} does not match the network described in the file's metadata; "
                "export the model again"
            )
    network.load_state_dict(tensors)
    return network, metadata
