"""Build a dataset folder from a source: plan the shards, write them in worker processes, assemble the folder.

A source first yields lightweight items (split, key, number), so that everything is planned before any image is read.
Each shard is then one task for one process, so the bytes do not depend on the number of processes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import PIL
import pyarrow as pa
from PIL import features

from adadf_dist.data.build.shard_task import (
    BuildNote,
    ShardResult,
    ShardTask,
    check_every_class,
    load_shard_result,
    save_shard_result,
)
from adadf_dist.data.build.source import CsvTable, Source, SourceItem
from adadf_dist.data.build.staging import PARTIAL_STATE_DIR, remove_others, staging_dir
from adadf_dist.data.build.writer import (
    IndexColumns,
    Sample,
    WrittenShard,
    write_dataset_card,
    write_index,
    write_shard,
    write_table,
)
from adadf_dist.data.dataset import Dataset, open_dataset
from adadf_dist.data.jpeg import InvalidImageError
from adadf_dist.data.manifest import MANIFEST, SPLITS, Manifest, SplitInfo, check_classes
from adadf_dist.data.workers.task_pool import ProcessPool
from adadf_dist.errors import UserError
from adadf_dist.files.atomic import os_errors_as_user_errors

MAX_KEY_LENGTH = 90
"""Maximum length of a sample key, because names in USTAR archives have at most 100 characters with the extension."""
SINGLE_PROCESS = ProcessPool(1)


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How a dataset is sharded and written. Only `name`, `seed` and `samples_per_shard` affect its bytes."""

    name: str
    seed: int = 0
    """Determines the order in which samples are stored."""
    samples_per_shard: int = 4096
    max_bad: int = 0
    """Maximum number of invalid images to skip."""
    overwrite: bool = False
    restart: bool = False
    """Discard an unfinished build of the same folder instead of resuming it."""


class TaskPool(Protocol):
    """Runs shard tasks in parallel: in processes on this machine (`ProcessPool`) or on a cluster."""

    def run(
        self,
        work: Callable[[Source, ShardTask, Callable[[], object]], ShardResult],
        source: Source,
        tasks: Sequence[ShardTask],
        on_samples: Callable[[int], object],
    ) -> list[ShardResult]:
        """Run `work(source, task, on_sample)` for every task and return the results in task order.

        Calls `on_samples(n)` whenever n more samples are done. Raises `UserError`.
        """


def build_dataset(
    source: Source,
    out: Path,
    options: BuildOptions,
    pool: TaskPool = SINGLE_PROCESS,
    on_samples: Callable[[int], object] = lambda count: None,
) -> Dataset:
    """Write `source` as the dataset folder `out` and open it. Calls `on_samples(n)` whenever n more samples are done.

    Invalid images are skipped and listed in skipped_images.csv; more than `options.max_bad` of them is an error.
    Raises `UserError`. In that case `out` is neither created nor changed, and `OUT.partial` keeps the list and the
    finished shards. The next build reuses the shards whose samples are unchanged and writes the rest.
    """
    out = out.resolve()
    items = source.items()
    check_items(items)
    check_classes(source.classes, f"source {source.provenance.source}", "fix the labels")
    with staging_dir(out, options.overwrite, build_settings(source, options), options.restart) as folder:
        tasks = plan_shards(items, folder, options)
        results = find_finished(folder, source, tasks)
        missing = [task for task in tasks if task.path not in results]
        check_free_space(folder, source, sum(map(len, missing)) / len(items))
        on_samples(len(items) - sum(map(len, missing)))
        new = pool.run(build_shard, source, missing, on_samples)
        results |= {task.path: result for task, result in zip(missing, new, strict=True)}
        bad = [note for task in tasks for note in results[task.path].bad]
        if len(bad) > options.max_bad:
            raise too_many_bad_error(folder, bad, len(items))
        finalize_dataset(folder, source, options, [(task, results[task.path]) for task in tasks])
    return open_dataset(out)


def build_settings(source: Source, options: BuildOptions) -> dict[str, object]:
    """Return the settings that determine the bytes of all shards. A build is resumed only with the same settings.

    Samples are compared per shard (`fingerprint_shard`), so a build can resume after the source was fixed.
    """
    provenance = source.provenance
    return {
        "source": provenance.source,
        "options": {**provenance.options, "seed": options.seed, "samples_per_shard": options.samples_per_shard},
        "versions": {  # of the libraries whose encoders determine the bytes
            "libjpeg-turbo": str(features.version("libjpeg_turbo")),
            "pillow": PIL.__version__,
            "pyarrow": pa.__version__,
        },
    }


def find_finished(folder: Path, source: Source, tasks: Sequence[ShardTask]) -> dict[Path, ShardResult]:
    """Return the finished shards of an unfinished build that still match `source`; remove other files in `folder`."""
    found: dict[Path, ShardResult] = {}
    files: set[Path] = set()
    for task in tasks:
        result = load_shard_result(task, partial(fingerprint_shard, source, task))
        if result is not None:
            found[task.path] = result
            files.add(task.result_path)
            if result.shard is not None:
                files |= {task.path, task.path.with_suffix(".idx")}
    remove_others(folder, files)
    return found


def fingerprint_shard(source: Source, task: ShardTask) -> str:
    """Return a digest of a shard's inputs: the classes and the samples, in order."""
    digest = hashlib.sha256(json.dumps(source.classes).encode())
    for item in task.items:
        name = json.dumps([item.split, item.key, source.describe_item(item.number)])
        digest.update(hashlib.sha256(name.encode() + source.fingerprint(item.number)).digest())
    return digest.hexdigest()


def check_free_space(folder: Path, source: Source, fraction: float) -> None:
    """Raise `UserError` if the disk is too full for the given fraction of the dataset."""
    overhead = 2600 * len(source.items())  # a sample's headers, padding, label, json and index rows
    need, free = round(fraction * (source.image_bytes + overhead)), shutil.disk_usage(folder).free
    if need > free:
        unit, scale = ("GB", 1e9) if need >= 1e9 else ("MB", 1e6)
        raise UserError(
            f"{folder.parent}: {free / scale:.1f} {unit} are free, but the dataset needs about {need / scale:.1f} "
            f"{unit}; free some space or choose another disk"
        )


def plan_shards(items: Sequence[SourceItem], folder: Path, options: BuildOptions) -> list[ShardTask]:
    """Return the shards to write: each split is shuffled with the seed and divided into shards of nearly equal size."""
    tasks = []
    for split in SPLITS:
        stored = [item for item in items if item.split == split]
        stored.sort(key=lambda item: shuffle_key(options.seed, item.key))
        count = -(-len(stored) // options.samples_per_shard)
        for shard in range(count):
            first, last = shard * len(stored) // count, (shard + 1) * len(stored) // count
            tasks.append(ShardTask(split, folder / f"{split}-{shard:06d}.tar", stored[first:last]))
    return tasks


def shuffle_key(seed: int, key: str) -> bytes:
    """Return a sort key for shuffling: a hash of seed and key, so that the order does not depend on any library."""
    return hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=16).digest()


def check_items(items: Sequence[SourceItem]) -> None:
    """Check that keys are valid and unique. Raises `UserError` if there are no training samples."""
    if not any(item.split == "train" for item in items):
        raise UserError("the source has no training samples; check --root and the split options")
    keys = Counter(item.key for item in items)
    assert len(keys) == len(items), f"key {keys.most_common(1)[0][0]} is not unique"
    for item in items:
        is_plain = item.key.isascii() and item.key.replace("-", "").replace("_", "").isalnum()
        assert item.split in SPLITS and is_plain and len(item.key) <= MAX_KEY_LENGTH, item


def build_shard(source: Source, task: ShardTask, on_sample: Callable[[], object]) -> ShardResult:
    """Load, encode and write the samples of one shard, in a worker process."""
    bad: list[BuildNote] = []
    remarks: list[BuildNote] = []

    def load_samples() -> Iterator[tuple[str, Sample]]:
        for item in task.items:
            try:
                sample = source.load(item.number)
            except InvalidImageError as error:
                bad.append(BuildNote(item.split, item.key, source.describe_item(item.number), str(error)))
            else:
                if sample.remark:
                    remarks.append(BuildNote(item.split, item.key, source.describe_item(item.number), sample.remark))
                yield item.key, sample
            on_sample()

    fingerprint = fingerprint_shard(source, task)  # before reading: a file that changes meanwhile is read again
    result = ShardResult(write_shard(task.path, load_samples(), source.classes), bad, remarks)
    save_shard_result(task, result, fingerprint)
    return result


def too_many_bad_error(folder: Path, bad: Sequence[BuildNote], samples: int) -> UserError:
    """Save the list of invalid images in `folder`, and return an error that explains how to continue."""
    path = folder / "skipped_images.csv"
    write_table(path, BuildNote._fields, bad)
    return UserError(
        f"{len(bad):,} of {samples:,} images are invalid (first: {bad[0].source}: {bad[0].reason}; "
        f"full list: {path}). Fix them and rerun, or skip them with --max-bad-images {len(bad)}"
    )


def finalize_dataset(
    folder: Path, source: Source, options: BuildOptions, written: Sequence[tuple[ShardTask, ShardResult]]
) -> None:
    """Write the files of the dataset other than the tars: indexes, lists and, last, `dataset.json`."""
    bad = [note for _, result in written for note in result.bad]
    remarks = [note for _, result in written for note in result.remarks]
    shards: dict[str, list[WrittenShard]] = {}
    for task, result in written:
        stored = shards.setdefault(task.split, [])
        if result.shard is not None:
            stored.append(renumber_shard(folder, result.shard, f"{task.split}-{len(stored):06d}.tar"))
    for split, stored in shards.items():
        if not stored:
            raise UserError(
                f"split {split}: all images are invalid (first: {bad[0].source}: {bad[0].reason}); fix the images"
            )
    if bad:
        check_every_class(source.classes, shards["train"], bad)
    provenance, settings = source.provenance, build_settings(source, options)
    lists = {"skipped_images.csv": CsvTable(BuildNote._fields, bad), "notes.csv": CsvTable(BuildNote._fields, remarks)}
    for name, table in {**provenance.tables, **lists}.items():
        if table.lines:
            write_table(folder / name, table.header, table.lines)
    every = [shard for stored in shards.values() for shard in stored]
    manifest = Manifest(
        name=options.name,
        classes=source.classes,
        smallest_image=(min(s.smallest_image[0] for s in every), min(s.smallest_image[1] for s in every)),
        largest_image=(max(s.largest_image[0] for s in every), max(s.largest_image[1] for s in every)),
        provenance={
            "source": settings["source"],
            "options": settings["options"],
            "stats": {**provenance.stats, "skipped_images": len(bad), "notes": len(remarks)},
            "versions": settings["versions"],
        },
        splits={split: finalize_split(folder, split, stored) for split, stored in shards.items()},
    )
    write_dataset_card(folder / "README.md", manifest)
    with os_errors_as_user_errors(folder / MANIFEST):
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")


def renumber_shard(folder: Path, shard: WrittenShard, file: str) -> WrittenShard:
    """Rename a shard's files to close a gap in the numbering left by a shard without valid images."""
    if shard.info.file == file:
        return shard
    # if killed after this point, the next build must not match the renamed tar to its old record
    (folder / PARTIAL_STATE_DIR / shard.info.file).with_suffix(".json").unlink()
    for suffix in (".tar", ".idx"):
        old = (folder / shard.info.file).with_suffix(suffix)
        old.rename((folder / file).with_suffix(suffix))
    return shard._replace(info=replace(shard.info, file=file))


def finalize_split(folder: Path, split: str, shards: Sequence[WrittenShard]) -> SplitInfo:
    """Write a split's index and return the split's manifest entry."""
    rows = IndexColumns()
    for number, shard in enumerate(shards):
        shard.rows.shard = [number] * len(shard.rows)
        rows.extend(shard.rows)
    index = f"{split}.parquet"
    counts = [sum(column) for column in zip(*(shard.info.class_counts for shard in shards), strict=True)]
    return SplitInfo(
        samples=len(rows),
        class_counts=tuple(counts),
        index=index,
        index_sha256=write_index(folder / index, rows),
        shards=tuple(shard.info for shard in shards),
    )
