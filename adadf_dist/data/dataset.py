"""Open datasets: labels, votes and keys are held in memory, and image bytes are read from memory-mapped tars.

A dataset folder contains WebDataset tars (`train-000000.tar` with KEY.jpg, KEY.cls, KEY.json), a DALI index for each
tar, a Parquet index for each split, and `dataset.json`. docs/data.md describes every file; `build/writer.py` writes
them.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from adadf_dist.data.manifest import FORMAT_VERSION, Manifest, SplitInfo, read_manifest
from adadf_dist.errors import UserError, single_line

__all__ = ["FORMAT_VERSION", "Dataset", "Split", "check_files", "check_trainable", "open_dataset", "open_split"]

Keys: TypeAlias = NDArray[Any]  # dtype np.dtypes.StringDType: variable width, no Python object per key

MAX_OPEN_MMAPS = 512
"""Maximum number of memory-mapped tars per split and process: each needs a file descriptor, often limited to 1,024."""


@dataclass(frozen=True, eq=False)
class Split:
    """One opened split. Sample indices run from 0 to S - 1 in stored order; C is the number of classes.

    Cheap to pickle into worker processes and safe to use after a fork: tars are mapped at the first read.
    """

    name: str
    folder: Path
    classes: tuple[str, ...]
    keys: Keys
    """[S], the key of each sample, unique across the dataset."""
    labels: NDArray[np.int64]
    """[S], the class of each sample, from 0 to C - 1."""
    votes: NDArray[np.float32] | None
    """[S, C], annotator votes per class, all 0 for a sample without votes; None if no sample in the split has votes."""
    distributions: NDArray[np.float32] | None
    """[S, C], true label distributions if the data source provides them (synthetic faces); None otherwise."""
    shards: tuple[str, ...]
    """File names of the tars."""
    locations: NDArray[np.int64]
    """[S, 3], where each encoded image is stored: index of the tar, and offset and size in bytes within the tar."""
    _maps: dict[str, mmap.mmap] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, sample: int) -> memoryview:
        """Return the encoded image (JPEG) of a sample as a read-only view into the mapped tar."""
        shard, offset, size = self.locations[sample].tolist()
        return memoryview(self._mmap(self.shards[shard]))[offset : offset + size]

    def subset(self, samples: NDArray[np.int64], name: str) -> Split:
        """Return a new split of the given samples, in the given order; its sample k is this split's `samples[k]`."""
        return replace(
            self,
            name=name,
            keys=self.keys[samples],
            labels=self.labels[samples],
            votes=None if self.votes is None else self.votes[samples],
            distributions=None if self.distributions is None else self.distributions[samples],
            locations=self.locations[samples],
        )

    def digest(self) -> str:
        """Return the SHA-256 of all keys and labels, in stored order."""
        digest = hashlib.sha256("\n".join(self.keys.tolist()).encode())
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def class_counts(self) -> NDArray[np.int64]:
        """Return the number of samples in each class, [C]."""
        return np.bincount(self.labels, minlength=len(self.classes))

    def _mmap(self, file: str) -> mmap.mmap:
        mapped = self._maps.get(file)
        if mapped is None:
            with (self.folder / file).open("rb") as stream:
                mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            if len(self._maps) >= MAX_OPEN_MMAPS:
                self._maps.pop(next(iter(self._maps)))  # closed when its last view is released, so readers stay valid
            self._maps[file] = mapped
        return mapped

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_maps": {}}


@dataclass(frozen=True)
class Dataset:
    """An open dataset folder."""

    folder: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is an index into this tuple."""
        return self.manifest.classes

    @property
    def splits(self) -> Mapping[str, SplitInfo]:
        return self.manifest.splits

    def split(self, name: str) -> Split:
        """Open a split by its name. Raises `UserError` if it does not exist or its index is invalid."""
        if name not in self.splits:
            raise UserError(f"{self.folder}: no {name} split", f"it has {', '.join(self.splits)}")
        split = open_split(self.folder, self.manifest, name)
        index = self.folder / self.splits[name].index
        if hashlib.sha256(index.read_bytes()).hexdigest() != self.splits[name].index_sha256:
            raise UserError(f"{index}: SHA-256 differs from dataset.json", "re-copy the dataset")
        return split


def open_dataset(folder: str | Path, streamed: Collection[str] = ()) -> Dataset:
    """Open a dataset folder: read `dataset.json` and check that every file it names exists with the right size.

    The tars of splits named in `streamed` may be missing, because they are read remotely.
    Hashes and images are not checked here, but by `python -m shards.verify`. Raises `UserError`.
    """
    dataset = Dataset(Path(folder), read_manifest(Path(folder)))
    problem = next(check_files(dataset.folder, dataset.manifest, streamed), None)
    if problem is not None:
        raise problem
    return dataset


def check_files(folder: Path, manifest: Manifest, streamed: Collection[str] = ()) -> Iterator[UserError]:
    """Yield an error for each file that is missing or whose size differs from that in `dataset.json`."""
    hint = "re-copy or rebuild the dataset"
    for name, split in manifest.splits.items():
        if not (folder / split.index).is_file():
            yield UserError(f"{folder / split.index}: missing", hint)
        for shard in () if name in streamed else split.shards:
            path = folder / shard.file
            if not path.is_file():
                yield UserError(f"{path}: missing", hint)
            elif (size := path.stat().st_size) != shard.bytes:
                state = "truncated" if size < shard.bytes else "changed"
                yield UserError(f"{path}: {state}: {size:,} bytes, expected {shard.bytes:,}", hint)


def open_split(folder: Path, manifest: Manifest, name: str) -> Split:
    """Read a split's Parquet index. Raises `UserError` if it is invalid or contradicts `dataset.json`."""
    info, path = manifest.splits[name], folder / manifest.splits[name].index
    num_classes = len(manifest.classes)
    table = _read_table(path)
    try:
        labels = _column(table, "label")
        locations = np.stack([_column(table, key) for key in ("shard", "offset", "size")], axis=1)
        keys = np.array(table["key"].to_pylist(), dtype=np.dtypes.StringDType())
        votes = _rows(table, "votes", num_classes)
        distributions = _rows(table, "distribution", num_classes) if "distribution" in table.column_names else None
    except (KeyError, ValueError, TypeError, pa.ArrowException) as error:
        reason = single_line(error, 120)
        raise UserError(f"{path}: not an index of this dataset ({reason})", "rebuild the dataset") from None
    if len(labels) != info.samples:
        raise UserError(f"{path}: {len(labels):,} rows, but dataset.json lists {info.samples:,}", "rebuild the dataset")
    split = Split(
        name=name,
        folder=folder,
        classes=manifest.classes,
        keys=keys,
        labels=labels,
        votes=votes,
        distributions=distributions,
        shards=tuple(shard.file for shard in info.shards),
        locations=locations,
    )
    _check_rows(split, info, path)
    return split


def check_trainable(split: Split) -> None:
    """Raise `UserError` unless the split contains samples of at least two classes."""
    present = np.flatnonzero(split.class_counts())
    if len(present) < 2:
        only = f"only class {split.classes[int(present[0])]}" if len(present) else "no class"
        raise UserError(f"{split.folder}: split {split.name} contains {only}", "training needs at least two classes")


def _read_table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, memory_map=False)
    except (pa.ArrowException, OSError) as error:
        reason = single_line(error, 120)
        raise UserError(f"{path}: corrupt ({reason})", "re-copy or rebuild the dataset") from None


def _column(table: pa.Table, name: str) -> NDArray[np.int64]:
    column = table[name]
    if column.null_count:
        raise ValueError(f"column {name} has empty cells")
    return np.asarray(column.to_numpy(), dtype=np.int64)


def _rows(table: pa.Table, name: str, width: int) -> NDArray[np.float32] | None:
    """Return a column of lists as an array [S, width], with zeros for missing lists; None if all lists are missing."""
    column = table[name].combine_chunks()
    present = np.asarray(column.is_valid())
    if not present.any():
        return None
    rows = np.zeros((len(column), width), dtype=np.float32)
    rows[present] = column.drop_null().flatten().to_numpy().reshape(-1, width)
    return rows


def _check_rows(split: Split, info: SplitInfo, path: Path) -> None:
    """Check that labels are valid, class counts match `dataset.json`, and images lie within their tars."""
    labels, (shard, offset, size) = split.labels, split.locations.T

    def refuse_any(wrong: NDArray[np.bool_], what: str) -> None:
        if wrong.any():
            sample = int(wrong.argmax())
            raise UserError(f"{path}: row {sample} (key {split.keys[sample]}): {what}", "rebuild the dataset")

    refuse_any((labels < 0) | (labels >= len(split.classes)), f"label outside the {len(split.classes)} classes")
    refuse_any((shard < 0) | (shard >= len(info.shards)), f"shard number outside the {len(info.shards)} tars")
    ends = np.array([entry.bytes for entry in info.shards], dtype=np.int64)
    refuse_any((offset < 0) | (size < 1) | (offset + size > ends[shard]), "image bytes outside its tar")
    if split.class_counts().tolist() != list(info.class_counts):
        raise UserError(f"{path}: class counts differ from dataset.json", "rebuild the dataset")
