"""Write the files of a dataset folder. Equal samples give equal bytes: no time, user or machine is recorded."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BufferedWriter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adadf_dist.data.jpeg import Jpeg
from adadf_dist.data.manifest import Manifest, ShardInfo
from adadf_dist.files.atomic import os_errors_as_user_errors

LABEL_DIGITS = 4
"""Number of digits in every KEY.cls file. The fixed width lets readers of raw bytes stack labels in an array."""

_BLOCK = tarfile.BLOCKSIZE
_BLANK_HEADER = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)
_BLANK_SUM = sum(_BLANK_HEADER) - sum(_BLANK_HEADER[148:156]) - sum(_BLANK_HEADER[124:136])


class Sample(NamedTuple):
    """A sample ready to be stored."""

    image: Jpeg
    label: int
    votes: Sequence[float] | None
    """Number or fraction of annotators who chose each class, in class order; None without votes."""
    distribution: Sequence[float] | None
    """True label distribution, if known."""
    source: str
    """Human-readable origin: a path or row within the source."""
    details: Mapping[str, object]
    """Additional fields of KEY.json."""
    remark: str = ""
    """Note about the sample for notes.csv; empty if there is none."""


@dataclass
class IndexColumns:
    """Columns of the Parquet index, in stored order."""

    shard: list[int] = field(default_factory=list)
    offset: list[int] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    key: list[str] = field(default_factory=list)
    label: list[int] = field(default_factory=list)
    votes: list[list[float] | None] = field(default_factory=list)
    distribution: list[list[float] | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.key)

    def extend(self, other: IndexColumns) -> None:
        for name, column in vars(self).items():
            column.extend(getattr(other, name))


class WrittenShard(NamedTuple):
    """A tar file on disk. `rows.shard` is filled in later, when the shards are numbered."""

    info: ShardInfo
    rows: IndexColumns
    smallest_image: tuple[int, int]
    largest_image: tuple[int, int]


def write_shard(path: Path, samples: Iterable[tuple[str, Sample]], classes: Sequence[str]) -> WrittenShard | None:
    """Write a tar of (key, sample) pairs and its DALI index. Samples are consumed one by one to limit memory use.

    Returns None, and leaves no file, if there are no samples. Raises `UserError` if writing fails.
    """
    rows, sizes, lines = IndexColumns(), [], []
    with os_errors_as_user_errors(path):
        with path.open("wb") as stream:
            tar = _Tar(stream)
            for key, sample in samples:
                line = []
                for extension, data in _members(sample, classes):
                    offset = tar.add(f"{key}.{extension}", data)
                    line.append(f"{extension} {offset} {len(data)} {key}.{extension}")
                    if extension == "jpg":
                        rows.offset.append(offset)
                lines.append(" ".join(line))
                _append(rows, key, sample)
                sizes.append((sample.image.width, sample.image.height))
            tar.finish()
            os.fsync(stream.fileno())
        if not lines:
            path.unlink()
            return None
        path.with_suffix(".idx").write_text("\n".join([f"v1.2 {len(lines)}", *lines]) + "\n", encoding="ascii")
    counts = np.bincount(rows.label, minlength=len(classes)).tolist()
    info = ShardInfo(path.name, len(rows), tar.position, tar.digest.hexdigest(), tuple(counts))
    widths, heights = zip(*sizes, strict=True)
    return WrittenShard(info, rows, (min(widths), min(heights)), (max(widths), max(heights)))


def _members(sample: Sample, classes: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    assert 0 <= sample.label < len(classes), f"{sample.source}: label {sample.label}"
    metadata = {
        "class": classes[sample.label],
        "label": sample.label,
        "votes": sample.votes,
        "source": sample.source,
        "width": sample.image.width,
        "height": sample.image.height,
        **sample.details,
    }
    if sample.distribution is not None:
        metadata["distribution"] = sample.distribution
    yield "jpg", sample.image.data
    yield "cls", f"{sample.label:0{LABEL_DIGITS}d}".encode()
    yield "json", json.dumps(metadata, separators=(",", ":")).encode()


def _append(rows: IndexColumns, key: str, sample: Sample) -> None:
    rows.key.append(key)
    rows.size.append(len(sample.image.data))
    rows.label.append(sample.label)
    rows.votes.append(None if sample.votes is None else list(sample.votes))
    rows.distribution.append(None if sample.distribution is None else list(sample.distribution))


class _Tar:
    """A USTAR archive, written front to back and hashed along the way.

    `tarfile` would write the same bytes, but reports neither the members' offsets nor the hash.
    """

    def __init__(self, stream: BufferedWriter) -> None:
        self.stream = stream
        self.position = 0
        self.digest = hashlib.sha256()

    def add(self, name: str, data: bytes) -> int:
        """Append a member and return the offset of its data."""
        self._write(ustar_header(name, len(data)))
        offset = self.position
        self._write(data + bytes(-len(data) % _BLOCK))
        return offset

    def finish(self) -> None:
        """End the archive with two empty blocks and padding to the record size that `tar` expects."""
        self._write(bytes(2 * _BLOCK))
        self._write(bytes(-self.position % tarfile.RECORDSIZE))

    def _write(self, data: bytes) -> None:
        self.stream.write(data)
        self.digest.update(data)
        self.position += len(data)


def ustar_header(name: str, size: int) -> bytes:
    """Return a USTAR header with mode 0644, owner 0 and time 0, so that the bytes do not depend on the machine.

    Equals `tarfile`'s header but takes a tenth of the time; `tarfile` takes as long as decoding a small JPEG.
    """
    named = name.encode("ascii")
    assert 0 < len(named) <= 100, name
    octal = b"%011o\0" % size
    checksum = _BLANK_SUM + sum(named) + sum(octal)
    return b"".join(
        (
            named.ljust(100, b"\0"),
            _BLANK_HEADER[100:124],
            octal,
            _BLANK_HEADER[136:148],
            b"%06o\0 " % (checksum + 8 * ord(" ")),
            _BLANK_HEADER[156:],
        )
    )


def write_index(path: Path, rows: IndexColumns) -> str:
    """Write a split's Parquet index and return its SHA-256. The column `distribution` exists if any row has one."""
    columns = {
        "shard": pa.array(rows.shard, pa.int32()),
        "offset": pa.array(rows.offset, pa.int64()),
        "size": pa.array(rows.size, pa.int64()),
        "key": pa.array(rows.key, pa.string()),
        "label": pa.array(rows.label, pa.int32()),
        "votes": pa.array(rows.votes, pa.list_(pa.float32())),
    }
    if any(distribution is not None for distribution in rows.distribution):
        columns["distribution"] = pa.array(rows.distribution, pa.list_(pa.float32()))
    with os_errors_as_user_errors(path):
        pq.write_table(pa.table(columns), path, compression="zstd")
        return hashlib.sha256(path.read_bytes()).hexdigest()


def write_table(path: Path, header: Sequence[str], lines: Iterable[Sequence[object]]) -> None:
    """Write a human-readable CSV file."""
    with os_errors_as_user_errors(path), path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(lines)


def write_dataset_card(path: Path, manifest: Manifest) -> None:
    """Write a dataset card. Its header makes Hugging Face `datasets` load the tars, not the indexes."""
    files = [line for split in manifest.splits for line in (f"  - split: {split}", f"    path: {split}-*.tar")]
    counts = ", ".join(f"{info.samples:,} {split}" for split, info in manifest.splits.items())
    head = ["---", "configs:", "- config_name: default", "  data_files:", *files, "---"]
    body = [
        f"# {manifest.name}",
        "",
        f"{counts}. Classes, in label order: {', '.join(manifest.classes)}.",
        "Plain WebDataset tars, with DALI's and Parquet indexes; `dataset.json` says how they were built.",
    ]
    with os_errors_as_user_errors(path):
        path.write_text("\n".join([*head, *body]) + "\n", encoding="utf-8")
