"""Verify a dataset folder completely: hashes, indexes, labels, and that every image decodes.

    python -m shards.verify DIR

Prints a table and exits with status 0 if everything is OK; otherwise prints one line per problem and exits with 1.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adadf_dist.console.exit import cli_errors
from adadf_dist.console.formats import plural
from adadf_dist.console.parser import make_parser
from adadf_dist.console.tables import align_columns
from adadf_dist.data.dataset import Split, check_files, open_split
from adadf_dist.data.jpeg import InvalidImageError, decode
from adadf_dist.data.manifest import Manifest, ShardInfo, read_manifest
from adadf_dist.data.workers.task_pool import map_tasks
from adadf_dist.errors import UserError
from shards.progress import Progress

DESCRIPTION = """\
Reads every tar of a dataset folder again, compares its SHA-256 with dataset.json, its DALI and Parquet indexes with its
members, and KEY.cls and KEY.json with the Parquet index, and decodes every image. If everything is OK, prints a table
and exits with status 0; otherwise prints one line per problem and exits with 1.
"""


@dataclass(frozen=True)
class Folder:
    """The dataset folder to verify; shared by all worker processes."""

    path: Path
    splits: Mapping[str, Split]


class Task(NamedTuple):
    """One tar for a worker process to check."""

    split: str
    number: int
    """Index of the tar within its split."""
    info: ShardInfo


class Member(NamedTuple):
    """A file in a tar, with its content."""

    name: str
    offset: int
    """Position of the content in the tar, in bytes."""
    data: bytes


def verify(path: Path, workers: int) -> tuple[Manifest, list[str]]:
    """Return the manifest and all problems found in a dataset folder.

    Raises `UserError` if `dataset.json` itself cannot be read.
    """
    manifest = read_manifest(path)
    findings = list(map(str, check_files(path, manifest)))
    splits: dict[str, Split] = {}
    for name, info in manifest.splits.items():
        if not (path / info.index).is_file():
            continue
        if hashlib.sha256((path / info.index).read_bytes()).hexdigest() != info.index_sha256:
            findings.append(f"{path / info.index}: SHA-256 differs from dataset.json")
        try:
            splits[name] = open_split(path, manifest, name)
        except UserError as error:
            findings.append(str(error))
    findings += find_duplicate_keys(splits)
    tasks = [
        Task(name, number, shard)
        for name, info in manifest.splits.items()
        for number, shard in enumerate(info.shards)
        if name in splits and (path / shard.file).is_file()
    ]
    with Progress("verifying", sum(task.info.samples for task in tasks)) as progress:
        found = map_tasks(check_shard, Folder(path, splits), tasks, workers, progress.update)
    return manifest, findings + [finding for lines in found for finding in lines]


def find_duplicate_keys(splits: Mapping[str, Split]) -> Iterator[str]:
    split_of_key: dict[str, str] = {}
    for name, split in splits.items():
        for key in split.keys.tolist():
            if key in split_of_key:
                yield f"{split.folder}: duplicate key {key} in {split_of_key[key]} and {name}"
            split_of_key[key] = name


def check_shard(folder: Folder, task: Task, on_sample: Callable[[], object]) -> list[str]:
    """Return the problems found in one tar. Runs in a worker process."""
    path, split = folder.path / task.info.file, folder.splits[task.split]
    findings = []
    with path.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != task.info.sha256:
            findings.append(f"{path}: SHA-256 differs from dataset.json")
    rows = np.flatnonzero(split.locations[:, 0] == task.number)
    lines: list[str] = []
    counts = [0] * len(split.classes)
    samples = 0
    try:
        for members in group_samples(path):
            key = members[0].name.partition(".")[0]
            lines.append(" ".join(f"{extension(m)} {m.offset} {len(m.data)} {m.name}" for m in members))
            row = int(rows[samples]) if samples < len(rows) else None
            findings += [f"{path}: {key}: {what}" for what in check_sample(key, members, split, row)]
            if row is not None:
                counts[split.labels[row]] += 1
            samples += 1
            on_sample()
    except (tarfile.TarError, EOFError) as error:
        findings.append(f"{path}: corrupt after {samples:,} samples ({error})")
    if samples != len(rows):
        findings.append(f"{path}: contains {samples:,} samples, but {task.split}.parquet lists {len(rows):,}")
    if (samples, tuple(counts)) != (task.info.samples, task.info.class_counts):
        findings.append(f"{path}: class counts differ from dataset.json")
    return findings + check_dali_index(path.with_suffix(".idx"), lines)


def group_samples(path: Path) -> Iterator[list[Member]]:
    """Yield groups of consecutive members with the same key, as WebDataset does, one sample in memory at a time."""
    group: list[Member] = []
    with tarfile.open(path, "r:") as tar:
        for info in tar:
            stream = tar.extractfile(info)
            member = Member(info.name, info.offset_data, b"" if stream is None else stream.read())
            if group and group[0].name.partition(".")[0] != member.name.partition(".")[0]:
                yield group
                group = []
            group.append(member)
    if group:
        yield group


def extension(member: Member) -> str:
    return member.name.partition(".")[2]


def check_sample(key: str, members: Sequence[Member], split: Split, row: int | None) -> Iterator[str]:
    """Yield a description of each problem with a sample.

    `row` is its row in the Parquet index, or None if the tar has more samples than the index.
    """
    if [extension(member) for member in members] != ["jpg", "cls", "json"]:
        yield f"contains {', '.join(member.name for member in members)}, expected KEY.jpg, KEY.cls and KEY.json"
        return
    image, label, metadata = members
    size: tuple[int, int] | None = None
    try:
        decoded = decode(image.data)
        size = decoded.size
        if decoded.format != "JPEG":
            yield f"image is {decoded.format}, not JPEG"
    except InvalidImageError as error:
        yield f"image: {error}"
    if row is None:
        yield "not in the Parquet index"
        return
    if str(split.keys[row]) != key:
        yield f"the Parquet index has key {split.keys[row]} at this position"
    if split.locations[row, 1:].tolist() != [image.offset, len(image.data)]:
        yield "the image's offset or length differs from the Parquet index"
    indexed = int(split.labels[row])
    if not label.data.isdigit() or int(label.data) != indexed:
        yield f"KEY.cls is {label.data[:12]!r}, but the Parquet index has {indexed}"
    yield from check_metadata(metadata.data, split, row, size)


def check_metadata(data: bytes, split: Split, row: int, size: tuple[int, int] | None) -> Iterator[str]:
    """Yield each difference between KEY.json and the Parquet index or the image, whose width and height are `size`."""
    try:
        metadata = json.loads(data)
        stored_class = (metadata["label"], metadata["class"])
        votes, distribution = metadata["votes"], metadata.get("distribution")
        stored_size = (metadata["width"], metadata["height"])
    except (ValueError, KeyError, TypeError) as error:
        yield f"KEY.json is corrupt ({type(error).__name__}: {error})"
        return
    label = int(split.labels[row])
    if stored_class != (label, split.classes[label]):
        yield f"KEY.json has class {stored_class}, but the Parquet index has {(label, split.classes[label])}"
    if size is not None and stored_size != size:
        yield f"KEY.json has image size {stored_size}, but the image has size {size}"
    for name, value, rows in (("votes", votes, split.votes), ("distribution", distribution, split.distributions)):
        indexed = None if rows is None else rows[row]
        if value is None and (indexed is None or not indexed.any()):
            continue
        if value is None or indexed is None or not np.array_equal(np.asarray(value, dtype=np.float32), indexed):
            yield f"KEY.json has {name} {value}, but the Parquet index has {indexed}"


def check_dali_index(path: Path, lines: Sequence[str]) -> list[str]:
    """Compare a DALI index with `lines`, the lines expected from the tar's members, and return the problems."""
    if not path.is_file():
        return [f"{path}: missing; without this index, DALI must scan the tar"]
    found = path.read_text(encoding="utf-8", errors="replace").splitlines()
    if found != [f"v1.2 {len(lines)}", *lines]:
        return [f"{path}: does not match the members of its tar; rebuild the dataset"]
    return []


def format_table(manifest: Manifest) -> str:
    """Return a table with the number of samples and tars and the total size of each split."""
    rows = [["split", "faces", "shards", "MB"]]
    for name, info in manifest.splits.items():
        megabytes = sum(shard.bytes for shard in info.shards) / 1e6
        rows.append([name, f"{info.samples:,}", str(len(info.shards)), f"{megabytes:,.1f}"])
    return "\n".join(align_columns(rows))


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser("shards.verify", DESCRIPTION)
    parser.add_argument("folder", type=Path, metavar="DIR", help="dataset folder")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--num-workers", type=int, default=cores, metavar="N", help="processes (default: %(default)s)")
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    with cli_errors("shards.verify", prints="report"):
        manifest, findings = verify(args.folder, args.num_workers)
        if findings:
            print("\n".join(findings))
            print(f"{args.folder}: {plural(len(findings), 'finding')}")
            raise SystemExit(1)
        print(format_table(manifest))
        print(f"{args.folder}: OK: all checksums, labels and images match dataset.json")


if __name__ == "__main__":
    main()
