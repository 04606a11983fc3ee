"""The verifier finds every fault that is injected into a dataset folder."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shards.verify import verify
from tests.helpers.dataset_builds import build_folder, one_pixel, png_header

# The verifier


def rewrite(folder: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Change members of the first training tar, and update hashes, sizes and DALI's index."""
    path = folder / "train-000000.tar"
    members = []
    with tarfile.open(path) as tar:
        for member in tar:
            members.append((member, change(member.name, tar.extractfile(member).read())))  # type: ignore[union-attr]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    lines: dict[str, list[str]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, extension = member.name.split(".")
            lines.setdefault(key, []).append(f"{extension} {member.offset_data} {member.size} {member.name}")
    text = "\n".join([f"v1.2 {len(lines)}", *(" ".join(line) for line in lines.values())])
    path.with_suffix(".idx").write_text(text + "\n")
    rehash(folder)


def rehash(folder: Path) -> None:
    content = json.loads((folder / "dataset.json").read_text())
    for split in content["splits"].values():
        split["index_sha256"] = hashlib.sha256((folder / split["index"]).read_bytes()).hexdigest()
        for shard in split["shards"]:
            data = (folder / shard["file"]).read_bytes()
            shard |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "dataset.json").write_text(json.dumps(content))


def edit_first(extension: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Change the first member with this extension to content of the same length, so that nothing moves."""

    def apply(folder: Path) -> None:
        done: list[str] = []

        def once(name: str, data: bytes) -> bytes:
            if done or not name.endswith(extension):
                return data
            done.append(name)
            changed = change(data)
            return changed[: len(data)] + b" " * (len(data) - len(changed))

        rewrite(folder, once)

    return apply


def flip_byte(folder: Path) -> None:
    path = folder / "train-000000.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)


def swap_keys(folder: Path) -> None:
    table = pq.read_table(folder / "train.parquet")
    keys = table["key"].to_pylist()
    keys[:2] = keys[1::-1]
    pq.write_table(table.set_column(table.column_names.index("key"), "key", pa.array(keys)), folder / "train.parquet")
    rehash(folder)


def grow_png(data: bytes) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (24, 20)).save(stream, "PNG")
    return stream.getvalue()


def drop_line(folder: Path) -> None:
    path = folder / "train-000000.idx"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "byte flipped": (flip_byte, "train-000000.tar: SHA-256 differs from dataset.json"),
    "truncated": (lambda f: (f / "train-000000.tar").write_bytes(b"x" * 9999), "truncated: 9,999 bytes"),
    "index of DALI": (drop_line, "train-000000.idx: does not match the members"),
    "index touched": (lambda f: (f / "train.parquet").open("ab").write(b"x"), "train.parquet: SHA-256 differs"),
    "keys swapped": (swap_keys, "the Parquet index has"),
    "label": (edit_first("cls", lambda data: b"0001" if data == b"0000" else b"0000"), "KEY.cls is b'000"),
    "label no number": (edit_first("cls", lambda data: b"glad"), "KEY.cls is b'glad'"),
    "class in json": (
        edit_first("json", lambda data: re.sub(rb'"label":\d', b'"label":2', data)),
        "KEY.json has class",
    ),
    "size in json": (
        edit_first("json", lambda data: data.replace(b'"width":24', b'"width":25')),
        "KEY.json has image size (25, 20), but the image has size (24, 20)",
    ),
    "json damaged": (edit_first("json", lambda data: data[:-1]), "KEY.json is corrupt"),
    "votes in json": (edit_first("json", lambda data: data.replace(b"null", b"[1] ")), "KEY.json has votes"),
    "image corrupt": (
        edit_first("jpg", lambda data: b"\xff\xd8" + b"\0" * (len(data) - 2)),
        "image: failed to decode",
    ),
    "image a PNG": (edit_first("jpg", grow_png), "image is PNG, not JPEG"),
    "image a bomb": (edit_first("jpg", lambda data: png_header(30_000, 30_000)), "image: more pixels than"),
    "image one pixel": (edit_first("jpg", lambda data: one_pixel()), "image: 1 x 1 pixels"),
    "tar gone": (lambda f: (f / "test-000000.tar").unlink(), "test-000000.tar: missing"),
}


@pytest.mark.parametrize(("inject", "line"), FAULTS.values(), ids=FAULTS)
def test_verify_finds_every_fault(image_folder: Path, inject: Callable[[Path], object], line: str) -> None:
    folder = build_folder(image_folder, "--test-fraction", 0.2).folder
    assert verify(folder, 1)[1] == []
    inject(folder)
    found = verify(folder, 1)[1]
    assert any(line in finding for finding in found), found
    assert all("\n" not in finding for finding in found)
