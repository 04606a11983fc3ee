"""Read the face recognition weights in the npm package @vladmandic/face-api, in TensorFlow.js's format.

A JSON manifest lists the tensors in the order of their bytes in the weights file. A tensor is float32, or uint8 with
the value `scale * q + min` for each byte q.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import subprocess
import tarfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adadf_dist.console.logs import get_logger
from adadf_dist.errors import UserError, single_line

PACKAGE = "@vladmandic/face-api@1.7.15"
ARCHIVE = "vladmandic-face-api-1.7.15.tgz"
"""File that `npm pack` writes."""
INFO = "package.json"
MANIFEST = "model/face_recognition_model-weights_manifest.json"
WEIGHTS = "model/face_recognition_model.bin"
FOLDER_IN_ARCHIVE = "package"
"""npm puts all members of an archive in this folder."""
FETCH_TIMEOUT_S = 600
HOW_TO_GET = f"run `npm pack {PACKAGE}` on a machine with npm and network access, and pass the file with --from"

logger = get_logger(__name__)


class FaceApiPackage(NamedTuple):
    """The parts of the npm package that are needed."""

    name: str
    """Name and version, as in `npm pack NAME@VERSION`."""
    path: Path
    sha256: str
    """SHA-256 of the archive; empty for a folder."""
    manifest: bytes
    weights: bytes


class TensorEntry(NamedTuple):
    """An entry of the manifest."""

    name: str
    shape: tuple[int, ...]
    scale: float
    minimum: float
    dtype: str
    """numpy's name of the stored type: `|u1`, or `<f4` with scale 1 and minimum 0."""

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def fetch_package(folder: Path) -> Path:
    """Download the package to `folder` with npm. Raises `UserError` that says how to get the file otherwise."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("npm is not installed", HOW_TO_GET)
    logger.info(f"fetching {PACKAGE} with npm")
    try:
        done = subprocess.run(
            [npm, "pack", PACKAGE], cwd=folder, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S
        )
        problem = "" if done.returncode == 0 else single_line(done.stderr) or f"exit status {done.returncode}"
    except (subprocess.TimeoutExpired, OSError) as error:
        problem = single_line(error)
    if not problem and not (folder / ARCHIVE).is_file():
        problem = f"it wrote no {ARCHIVE}"
    if problem:
        raise UserError(f"npm pack {PACKAGE} failed ({problem})", HOW_TO_GET)
    return folder / ARCHIVE


def read_package(path: Path) -> FaceApiPackage:
    """Read the package from an archive written by npm, or from a folder. Raises `UserError`."""
    if path.is_dir():
        root = next((folder for folder in (path, path / FOLDER_IN_ARCHIVE) if (folder / INFO).is_file()), path)
        info, manifest, weights = (read_file(root / name) for name in (INFO, MANIFEST, WEIGHTS))
        digest = ""
    elif path.is_file():
        info, manifest, weights = read_members(path, (INFO, MANIFEST, WEIGHTS))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    else:
        raise UserError(f"--from {path}: no such file or folder", HOW_TO_GET)
    try:
        content = json.loads(info)
        name = f"{content['name']}@{content['version']}"
    except (ValueError, KeyError, TypeError):
        raise UserError(f"--from {path}: {INFO} lacks a name or version", HOW_TO_GET) from None
    return FaceApiPackage(name, path, digest, manifest, weights)


def read_file(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"--from: {path}: no such file, but the npm package {PACKAGE} has one", HOW_TO_GET)
    return path.read_bytes()


def read_members(path: Path, names: tuple[str, ...]) -> list[bytes]:
    """Read files of an npm archive, without unpacking it to disk. Raises `UserError`."""
    try:
        with tarfile.open(path, "r:gz") as archive:
            members = {member.name: member for member in archive if member.isfile()}
            for name in names:
                if f"{FOLDER_IN_ARCHIVE}/{name}" not in members:
                    raise UserError(f"--from {path}: has no {name}, unlike the npm package {PACKAGE}", HOW_TO_GET)
            streams = [archive.extractfile(members[f"{FOLDER_IN_ARCHIVE}/{name}"]) for name in names]
            return [stream.read() for stream in streams if stream is not None]
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        reason = single_line(error, 120)
        raise UserError(f"--from {path}: truncated or not a .tgz archive ({reason})", HOW_TO_GET) from None


def read_tensors(package: FaceApiPackage) -> dict[str, NDArray[np.float64]]:
    """Return the dequantized tensors by name, in TensorFlow's layout. Raises `UserError`."""
    entries = parse_manifest(package)
    expected = sum(entry.num_bytes for entry in entries)
    if len(package.weights) != expected:
        raise UserError(
            f"--from {package.path}: {WEIGHTS} has {len(package.weights):,} bytes, but its manifest lists "
            f"{expected:,}; the file is truncated or from a different version",
            HOW_TO_GET,
        )
    tensors, offset = {}, 0
    for entry in entries:
        stored = np.frombuffer(package.weights, entry.dtype, math.prod(entry.shape), offset)
        tensors[entry.name] = stored.astype(np.float64).reshape(entry.shape) * entry.scale + entry.minimum
        offset += entry.num_bytes
    return tensors


def parse_manifest(package: FaceApiPackage) -> list[TensorEntry]:
    try:
        (group,) = json.loads(package.manifest)
        return [parse_entry(values) for values in group["weights"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--from {package.path}: {MANIFEST} is not a TensorFlow.js manifest of one group of float32 tensors, "
            f"plain or quantized to uint8 ({single_line(error, 120)})",
            HOW_TO_GET,
        ) from None


def parse_entry(values: dict[str, Any]) -> TensorEntry:
    """Parse an entry of the manifest. Raises `ValueError`, `KeyError` or `TypeError` if it is invalid."""
    name, shape = values["name"], tuple(int(side) for side in values["shape"])
    quantization = values.get("quantization")
    if values["dtype"] != "float32" or (quantization is not None and quantization["dtype"] != "uint8"):
        raise ValueError(f"{name} is {values['dtype']}, {quantization}")
    if quantization is None:
        return TensorEntry(name, shape, 1.0, 0.0, "<f4")
    return TensorEntry(name, shape, float(quantization["scale"]), float(quantization["min"]), "|u1")
