"""What became of one shard: kept beside unfinished work, so that a build that was killed need not do it again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from adadf_dist.data.build.staging import PARTIAL_STATE_DIR, write_whole
from adadf_dist.data.build.writer import IndexColumns, WrittenShard
from adadf_dist.data.manifest import ShardInfo
from adadf_dist.errors import UserError
from adadf_dist.files.outputs import os_errors_as_user_errors


class SourceItem(NamedTuple):
    """A face before its image is touched."""

    split: str
    key: str
    """Unique over the dataset; letters, digits, `-` and `_`."""
    number: int
    """Its place in the source."""


@dataclass(frozen=True)
class ShardTask:
    """One shard to be written."""

    split: str
    path: Path
    items: Sequence[SourceItem]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def outcome_path(self) -> Path:
        return self.path.parent / PARTIAL_STATE_DIR / f"{self.path.stem}.json"


class BuildNote(NamedTuple):
    """A line of quarantine.csv or remarks.csv."""

    split: str
    key: str
    source: str
    reason: str


class ShardResult(NamedTuple):
    shard: WrittenShard | None
    """None when not one image could be stored."""
    bad: list[BuildNote]
    """Of images that cannot be stored."""
    remarks: list[BuildNote]
    """Of images that are stored."""


def save_shard_result(task: ShardTask, outcome: ShardResult, fingerprint: str) -> None:
    """Record a finished shard and the fingerprint of its samples. The tar must be on the disk by then."""
    shard = outcome.shard
    values = {
        "fingerprint": fingerprint,
        "shard": None if shard is None else {**shard._asdict(), "info": asdict(shard.info), "rows": vars(shard.rows)},
        "bad": outcome.bad,
        "remarks": outcome.remarks,
    }
    with os_errors_as_user_errors(task.outcome_path):
        write_whole(task.outcome_path, json.dumps(values))


def load_shard_result(task: ShardTask, fingerprint: Callable[[], str]) -> ShardResult | None:
    """Result of a shard that an earlier, unfinished build wrote.

    None when there is none, when its samples no longer have the same fingerprint, or when its tar is not as recorded.
    """
    try:
        values = json.loads(task.outcome_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if values.get("fingerprint") != fingerprint():
        return None
    bad, remarks = ([BuildNote(*line) for line in values[name]] for name in ("bad", "remarks"))
    kept = values["shard"]
    if kept is None:
        return ShardResult(None, bad, remarks)
    info = ShardInfo(**{**kept["info"], "class_counts": tuple(kept["info"]["class_counts"])})
    if not task.path.is_file() or task.path.stat().st_size != info.bytes or not task.path.with_suffix(".idx").is_file():
        return None
    smallest, largest = (tuple(kept[name]) for name in ("smallest_image", "largest_image"))
    return ShardResult(WrittenShard(info, IndexColumns(**kept["rows"]), smallest, largest), bad, remarks)


def check_every_class(classes: Sequence[str], train: Sequence[WrittenShard], bad: Sequence[BuildNote]) -> None:
    """Raise `UserError` when the images that cannot be stored are all that a class has to train on."""
    counts = [sum(column) for column in zip(*(shard.info.class_counts for shard in train), strict=True)]
    for name, count in zip(classes, counts, strict=True):
        if not count:
            raise UserError(
                f"class {name}: none of its training images can be stored; fix them, or leave the class out (of all "
                f"{len(bad):,} that cannot be stored, the first: {bad[0].source}: {bad[0].reason})"
            )
