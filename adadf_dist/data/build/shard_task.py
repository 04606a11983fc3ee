"""Shard-writing tasks and their results, which are saved so that a resumed build does not repeat finished shards."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from adadf_dist.data.build.source import SourceItem
from adadf_dist.data.build.staging import PARTIAL_STATE_DIR
from adadf_dist.data.build.writer import IndexColumns, WrittenShard
from adadf_dist.data.manifest import ShardInfo
from adadf_dist.errors import UserError
from adadf_dist.files.atomic import write_text


@dataclass(frozen=True)
class ShardTask:
    """A shard to write, and its samples."""

    split: str
    path: Path
    items: Sequence[SourceItem]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def result_path(self) -> Path:
        return self.path.parent / PARTIAL_STATE_DIR / f"{self.path.stem}.json"


class BuildNote(NamedTuple):
    """One line of skipped_images.csv or notes.csv."""

    split: str
    key: str
    source: str
    reason: str


class ShardResult(NamedTuple):
    shard: WrittenShard | None
    """The shard that was written; None if no image could be stored."""
    bad: list[BuildNote]
    """Notes on invalid images."""
    remarks: list[BuildNote]
    """Notes on stored images."""


def save_shard_result(task: ShardTask, result: ShardResult, fingerprint: str) -> None:
    """Save a finished shard's result and the fingerprint of its samples. The tar must already be on disk."""
    shard = result.shard
    values = {
        "fingerprint": fingerprint,
        "shard": None if shard is None else {**shard._asdict(), "info": asdict(shard.info), "rows": vars(shard.rows)},
        "bad": result.bad,
        "remarks": result.remarks,
    }
    write_text(task.result_path, json.dumps(values), sync=True)


def load_shard_result(task: ShardTask, fingerprint: Callable[[], str]) -> ShardResult | None:
    """Load the result of a shard that an earlier, unfinished build wrote.

    Returns None if there is no result, if its samples' fingerprint changed, or if its tar is not as recorded.
    """
    try:
        values = json.loads(task.result_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if values.get("fingerprint") != fingerprint():
        return None
    bad, remarks = ([BuildNote(*line) for line in values[name]] for name in ("bad", "remarks"))
    shard = values["shard"]
    if shard is None:
        return ShardResult(None, bad, remarks)
    info = ShardInfo(**{**shard["info"], "class_counts": tuple(shard["info"]["class_counts"])})
    if not task.path.is_file() or task.path.stat().st_size != info.bytes or not task.path.with_suffix(".idx").is_file():
        return None
    smallest, largest = (tuple(shard[name]) for name in ("smallest_image", "largest_image"))
    return ShardResult(WrittenShard(info, IndexColumns(**shard["rows"]), smallest, largest), bad, remarks)


def check_every_class(classes: Sequence[str], train: Sequence[WrittenShard], bad: Sequence[BuildNote]) -> None:
    """Raise `UserError` if every training image of some class is invalid."""
    counts = [sum(column) for column in zip(*(shard.info.class_counts for shard in train), strict=True)]
    for name, count in zip(classes, counts, strict=True):
        if not count:
            raise UserError(
                f"class {name}: all of its training images are invalid; fix them or exclude the class "
                f"({len(bad):,} invalid images in total, first: {bad[0].source}: {bad[0].reason})"
            )
