"""npm packages with the layout of @vladmandic/face-api and random face recognition weights."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCKS = {
    "conv32_1": ("conv32.0", 32, 32),
    "conv32_2": ("conv32.1", 32, 32),
    "conv32_3": ("conv32.2", 32, 32),
    "conv64_down": ("conv64.0", 32, 64),
    "conv64_1": ("conv64.1", 64, 64),
    "conv64_2": ("conv64.2", 64, 64),
    "conv64_3": ("conv64.3", 64, 64),
    "conv128_down": ("conv128.0", 64, 128),
    "conv128_1": ("conv128.1", 128, 128),
    "conv128_2": ("conv128.2", 128, 128),
    "conv256_down": ("conv256.0", 128, 256),
    "conv256_1": ("conv256.1", 256, 256),
    "conv256_2": ("conv256.2", 256, 256),
    "conv256_down_out": ("conv256_out.0", 256, 256),
}
"""The package's name of each block -> ours, and its numbers of input and output channels."""
INFO = "package.json"
MANIFEST = "model/face_recognition_model-weights_manifest.json"
WEIGHTS = "model/face_recognition_model.bin"


class FakePackage(NamedTuple):
    """Files of the package, and what they contain."""

    files: dict[str, bytes]
    tensors: dict[str, NDArray[np.float64]]
    """By the package's names, in TensorFlow's layout."""


def convolution(name: str, side: int, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}/conv/filters": (side, side, inputs, outputs),
        f"{name}/conv/bias": (outputs,),
        f"{name}/scale/weights": (outputs,),
        f"{name}/scale/biases": (outputs,),
    }


def tensor_shapes() -> dict[str, tuple[int, ...]]:
    shapes = convolution("conv32_down", 7, 3, 32)
    for name, (_, inputs, outputs) in BLOCKS.items():
        shapes |= convolution(f"{name}/conv1", 3, inputs, outputs)
        shapes |= convolution(f"{name}/conv2", 3, outputs, outputs)
    return {**shapes, "fc": (256, 128)}


def fake_package(seed: int = 0, shapes: Mapping[str, tuple[int, ...]] | None = None) -> FakePackage:
    """Random weights whose activations stay of order 1. The biases of the first convolution are not quantized."""
    random = np.random.default_rng(seed)
    entries: list[dict[str, Any]] = []
    stored, tensors = [], {}
    for name, shape in (tensor_shapes() if shapes is None else shapes).items():
        entry: dict[str, Any] = {"name": name, "shape": list(shape), "dtype": "float32"}
        if name == "conv32_down/conv/bias":
            plain = random.normal(0, 0.1, shape).astype("<f4")
            stored.append(plain.tobytes())
            tensors[name] = plain.astype(np.float64)
        else:
            low, high = value_range(name, shape)
            bytes_ = random.integers(0, 256, shape, dtype=np.uint8)
            entry["quantization"] = {"dtype": "uint8", "scale": (high - low) / 255, "min": low}
            stored.append(bytes_.tobytes())
            tensors[name] = low + (high - low) / 255 * bytes_.astype(np.float64)
        entries.append(entry)
    manifest = [{"weights": entries, "paths": ["face_recognition_model.bin"]}]
    info = {"name": "@vladmandic/face-api", "version": "0.0.1", "license": "MIT"}
    files = {INFO: json.dumps(info).encode(), MANIFEST: json.dumps(manifest).encode(), WEIGHTS: b"".join(stored)}
    return FakePackage(files, tensors)


def value_range(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    if name.endswith("filters"):
        most = float(np.sqrt(3 / np.prod(shape[:3])))
        return -most, most
    return (0.5, 1.5) if name.endswith("weights") else (-0.1, 0.1)


def write_archive(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write an archive as `npm pack` does: all files below `package/`."""
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_folder(path: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path
