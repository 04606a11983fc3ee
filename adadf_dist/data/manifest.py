"""Reading and writing `dataset.json`, which lists the contents of a dataset folder and how it was built."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from adadf_dist.errors import UserError
from adadf_dist.files.old_formats import upgrade_fields
from adadf_dist.files.text import check_path, read_text

FORMAT_VERSION = 1
MANIFEST = "dataset.json"
SPLITS = ("train", "validation", "test")

T = TypeVar("T")


@dataclass(frozen=True)
class ShardInfo:
    """Description of one tar in `dataset.json`."""

    file: str
    samples: int
    bytes: int
    sha256: str
    class_counts: tuple[int, ...]


@dataclass(frozen=True)
class SplitInfo:
    """Description of one split in `dataset.json`: its Parquet index and its tars."""

    samples: int
    class_counts: tuple[int, ...]
    index: str
    index_sha256: str
    shards: tuple[ShardInfo, ...]


@dataclass(frozen=True)
class Manifest:
    """The content of `dataset.json`."""

    name: str
    classes: tuple[str, ...]
    smallest_image: tuple[int, int]
    """Minimum width and minimum height over all images, in pixels."""
    largest_image: tuple[int, int]
    provenance: Mapping[str, object]
    """How the dataset was built (source, options, versions, statistics), for people to read; no program uses it."""
    splits: Mapping[str, SplitInfo]

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of each split's content, by split name, computed from the hashes in `dataset.json`.

        It covers class names, keys, labels and votes (through the index's hash) and images (through the tars' hashes),
        in order, but neither the name nor the location of the dataset.
        """
        return {name: self._digest(split) for name, split in self.splits.items()}

    def _digest(self, split: SplitInfo) -> str:
        shards = [[shard.bytes, shard.sha256] for shard in split.shards]
        return hashlib.sha256(json.dumps([self.classes, split.index_sha256, shards]).encode()).hexdigest()

    def to_json(self) -> str:
        return json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=1) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's `dataset.json`, without checking other files. Raises `UserError` if it is missing or invalid."""
    path = folder / MANIFEST
    check_path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such dataset folder", "build it with `python -m shards.build`")
    if not path.is_file():
        raise UserError(
            f"{folder}: not a dataset folder: it contains no {MANIFEST}", "`python -m shards.build` writes one"
        )
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{path}: corrupt ({error})", "re-copy the file or rebuild the dataset") from None
    if isinstance(content, dict) and "built" in content:  # version 0.1
        content["provenance"] = upgrade_fields(content.pop("built"))
    table = _Table(path, "", content)
    version = table.get("format_version", int)
    if version != FORMAT_VERSION:
        hint = "update adadf_dist" if version > FORMAT_VERSION else "rebuild the dataset"
        raise UserError(f"{path}: format version {version}, but this adadf_dist reads version {FORMAT_VERSION}", hint)
    classes = _read_classes(table)
    splits = table.get("splits", dict)
    for name in splits:
        if name not in SPLITS:
            raise UserError(f"{path}: splits: {name!r} is not one of {', '.join(SPLITS)}", "rebuild the dataset")
    return Manifest(
        name=table.get("name", str),
        classes=classes,
        smallest_image=table.pair("smallest_image"),
        largest_image=table.pair("largest_image"),
        provenance=table.get("provenance", dict),
        splits={name: _read_split(path, name, splits[name], len(classes)) for name in SPLITS if name in splits},
    )


def _read_classes(table: _Table) -> tuple[str, ...]:
    classes = table.get("classes", list)
    check_classes(classes, str(table.path), "rebuild the dataset")
    return tuple(classes)


def check_classes(classes: Sequence[object], where: str, hint: str) -> None:
    """Raise `UserError` unless there is at least one class and all class names are distinct and nonempty."""
    if not classes or not all(isinstance(name, str) and name for name in classes):
        raise UserError(f"{where}: classes must be a list of names", hint)
    repeated = [name for name, count in Counter(classes).items() if count > 1]
    if repeated:
        raise UserError(f"{where}: classes: {repeated[0]!r} is listed twice", "give each class its own name")


def _read_split(path: Path, name: str, content: object, num_classes: int) -> SplitInfo:
    where = f"splits.{name}"
    table = _Table(path, where, content)
    shards = []
    for number, entry in enumerate(table.get("shards", list)):
        shard = _Table(path, f"{where}.shards[{number}]", entry)
        samples = shard.get("samples", int)
        shards.append(
            ShardInfo(
                file=shard.file("file"),
                samples=samples,
                bytes=shard.get("bytes", int),
                sha256=shard.get("sha256", str),
                class_counts=shard.counts(num_classes, samples),
            )
        )
    samples = table.get("samples", int)
    if samples < 1:
        raise UserError(f"{path}: {where} has no samples", "rebuild the dataset from a source that has some")
    if samples != sum(shard.samples for shard in shards):
        raise UserError(f"{path}: {where}: shard sample counts do not sum to {samples:,}", "rebuild the dataset")
    return SplitInfo(
        samples=samples,
        class_counts=table.counts(num_classes, samples),
        index=table.file("index"),
        index_sha256=table.get("index_sha256", str),
        shards=tuple(shards),
    )


@dataclass(frozen=True)
class _Table:
    """A JSON object read field by field; errors name the field that is missing or has the wrong type."""

    path: Path
    where: str
    content: object

    def get(self, key: str, kind: type[T]) -> T:
        if not isinstance(self.content, dict):
            raise UserError(f"{self.path}: {self.where or 'the content'} is not a JSON object", "rebuild the dataset")
        name = f"{self.where}.{key}".lstrip(".")
        if key not in self.content:
            raise UserError(f"{self.path}: missing field {name}", "re-copy the file or rebuild the dataset")
        value = self.content[key]
        if not isinstance(value, kind):
            raise UserError(f"{self.path}: {name} is {str(value)[:40]!r}, not of type {kind.__name__}")
        return value

    def file(self, key: str) -> str:
        """Return the file name in field `key`. Raises `UserError` if it contains a folder."""
        name = self.get(key, str)
        if name != Path(name).name or name in ("", ".", ".."):
            raise UserError(f"{self.path}: {self.where}.{key} is {name!r}, not a plain file name")
        return name

    def pair(self, key: str) -> tuple[int, int]:
        match self.get(key, list):
            case [int(width), int(height)]:
                return width, height
            case value:
                raise UserError(f"{self.path}: {key} is {value!r}, not [width, height]")

    def counts(self, num_classes: int, samples: int) -> tuple[int, ...]:
        counts = self.get("class_counts", list)
        whole = all(isinstance(count, int) and count >= 0 for count in counts)
        if not whole or len(counts) != num_classes or sum(counts) != samples:
            raise UserError(
                f"{self.path}: {self.where}.class_counts must be {num_classes} counts that sum to {samples:,}",
                "rebuild the dataset",
            )
        return tuple(counts)
