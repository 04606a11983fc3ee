"""Build datasets from the command line in this process, and read what was stored."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from adadf_dist.data.dataset import Dataset, Split
from adadf_dist.errors import UserError
from shards.build import build, parse_arguments

ROOT = Path(__file__).parents[2]


def run_build(source: str, out: Path, *options: object, workers: int = 1) -> Dataset:
    """Build a dataset as from the command line, in this process."""
    words = [source, "--out", out, "--num-workers", workers, *options]
    return build(parse_arguments([str(word) for word in words]))


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def findings(dataset: Dataset) -> Mapping[str, Any]:
    found = dataset.manifest.provenance["stats"]
    assert isinstance(found, Mapping)
    return found


def facts(dataset: Dataset, split: str) -> dict[str, dict[str, Any]]:
    """KEY.json by key, read with tarfile."""
    found = {}
    for shard in dataset.splits[split].shards:
        with tarfile.open(dataset.folder / shard.file) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    found[member.name.removesuffix(".json")] = json.load(tar.extractfile(member))  # type: ignore[arg-type]
    return found


def pixels(split: Split, sample: int) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(split.read(sample))))


def places(dataset: Dataset) -> dict[str, tuple[str, int]]:
    """Source -> (split, label) of every stored sample."""
    found = {}
    for name in dataset.splits:
        split, output = dataset.split(name), facts(dataset, name)
        for key, label in zip(split.keys, split.labels, strict=True):
            found[output[key]["source"]] = (name, int(label))
    return found


# A tree of folders


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (24, 20), **options: Any) -> Path:
    """Write an image that depends on its name alone."""
    seed = zlib.crc32(path.name.encode())
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).convert(mode).save(path, **options)
    return path


def build_folder(root: Path, *options: object) -> Dataset:
    return run_build("folder", root.parent / "out", "--root", root, *options)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def one_pixel() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (1, 1)).save(stream, "JPEG")
    return stream.getvalue()


def refused(source: str, tmp_path: Path, *words: Any) -> str:
    """The one line of a rejected build, which leaves no dataset."""
    with pytest.raises(UserError) as caught:
        run_build(source, tmp_path / "refused", *words)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "refused").exists()
    return str(caught.value)
