"""The builder: replacing, resuming, full disks, concurrent builds and failing workers."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from adadf_dist.data.build import builder
from adadf_dist.data.build.builder import build_dataset
from adadf_dist.data.build.writer import Sample
from adadf_dist.data.dataset import Dataset
from adadf_dist.data.workers.task_pool import ProcessPool
from adadf_dist.errors import UserError
from tests.helpers.numbered_images import OPTIONS, Pictures, tree

# A dataset folder appears atomically


class BreakOffError(Exception):
    pass


@dataclass(frozen=True)
class FailingSource(Pictures):
    """A source that fails halfway."""

    def load(self, number: int) -> Sample:
        if number == 20:
            raise BreakOffError
        return super().load(number)


def test_failed_build_keeps_the_old_dataset(copy: Path, tmp_path: Path) -> None:
    before = tree(copy)
    with pytest.raises(BreakOffError):
        build_dataset(FailingSource(), copy, replace(OPTIONS, overwrite=True))
    with pytest.raises(BreakOffError):
        build_dataset(FailingSource(), tmp_path / "new", OPTIONS)
    assert tree(copy) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"copy", "copy.partial", "new.partial"}


def test_existing_dataset_is_replaced_only_with_force(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dataset already exists; pass --overwrite"):
        build_dataset(Pictures(), copy, OPTIONS)
    new = build_dataset(Pictures(), copy, replace(OPTIONS, samples_per_shard=50, overwrite=True))
    assert len(new.splits["train"].shards) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]
    assert not (copy / "train-000001.tar").exists()


def test_folder_without_a_dataset_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="not a dataset folder"):
        build_dataset(Pictures(), tmp_path / "home", replace(OPTIONS, overwrite=True))
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


def test_leftovers_of_a_killed_build_are_removed(built: Dataset, tmp_path: Path) -> None:
    partial = tmp_path / "new.partial"
    partial.mkdir()
    (partial / "train-000099.tar").write_bytes(b"half")
    new = build_dataset(Pictures(), tmp_path / "new", OPTIONS)
    assert tree(new.folder) == tree(built.folder)
    assert not partial.exists()


@dataclass(frozen=True)
class LimitedSource(Pictures):
    """A source that fails after a given number of images."""

    asked: list[int] = field(default_factory=list)
    limit: int = 20

    def load(self, number: int) -> Sample:
        self.asked.append(number)
        if len(self.asked) > self.limit:
            raise BreakOffError
        return super().load(number)


def test_unfinished_build_is_resumed(built: Dataset, tmp_path: Path) -> None:
    first, second = LimitedSource(), LimitedSource(limit=50)
    with pytest.raises(BreakOffError):
        build_dataset(first, tmp_path / "new", OPTIONS)
    assert not (tmp_path / "new").exists()
    output: list[int] = []
    new = build_dataset(second, tmp_path / "new", OPTIONS, on_samples=output.append)
    assert tree(new.folder) == tree(built.folder)
    assert sum(output) == 50
    done = (len(first.asked) - 1) // 7 * 7  # complete shards of at most 7: 41 samples are 6 shards
    assert len(second.asked) <= 50 - done + 7
    assert len(second.asked) < 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]


def test_truncated_tar_of_an_unfinished_build_is_rewritten(built: Dataset, tmp_path: Path) -> None:
    with pytest.raises(BreakOffError):
        build_dataset(LimitedSource(), tmp_path / "new", OPTIONS)
    with (tmp_path / "new.partial" / "train-000000.tar").open("r+b") as stream:
        stream.truncate(1000)
    assert tree(build_dataset(Pictures(), tmp_path / "new", OPTIONS).folder) == tree(built.folder)


def test_unfinished_build_with_other_options_is_rejected(built: Dataset, tmp_path: Path) -> None:
    with pytest.raises(BreakOffError):
        build_dataset(LimitedSource(), tmp_path / "new", OPTIONS)
    with pytest.raises(UserError, match=r"samples_per_shard was 7, is 9.*--discard-partial"):
        build_dataset(Pictures(), tmp_path / "new", replace(OPTIONS, samples_per_shard=9))
    new = build_dataset(Pictures(), tmp_path / "new", replace(OPTIONS, samples_per_shard=9, restart=True))
    assert len(new.splits["train"].shards) == 5
    assert tree(build_dataset(Pictures(), tmp_path / "again", OPTIONS).folder) == tree(built.folder)


def test_insufficient_disk_space_is_reported_before_the_build(tmp_path: Path) -> None:
    source = LimitedSource(image_bytes=10**18)
    with pytest.raises(UserError, match=r"GB are free, but the dataset needs about 1000000000\.0 GB"):
        build_dataset(source, tmp_path / "new", OPTIONS)
    assert source.asked == []


def test_small_disk_space_is_reported_in_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder.shutil, "disk_usage", lambda path: SimpleNamespace(free=7 * 10**4))
    with pytest.raises(UserError, match=r"0\.1 MB are free, but the dataset needs about 0\.2 MB"):  # 50 kB and 50 x 2.6
        build_dataset(Pictures(), tmp_path / "new", OPTIONS)
    assert list(tmp_path.iterdir()) == []


@dataclass(frozen=True)
class ReentrantSource(Pictures):
    """A source that starts the same build again while it is read."""

    out: Path = Path()

    def load(self, number: int) -> Sample:
        build_dataset(Pictures(), self.out, OPTIONS)
        return super().load(number)


def test_concurrent_builds_of_one_folder_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="locked by another build"):
        build_dataset(ReentrantSource(out=tmp_path / "new"), tmp_path / "new", OPTIONS)


@contextmanager
def small_files() -> Iterator[None]:
    """No file may exceed 8 KB, as on a full disk; pytest's own log must not be written meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_is_one_line(tmp_path: Path) -> None:
    full = r"train-000000\.tar: cannot be written: .*free some space"
    with pytest.raises(UserError, match=full) as error, small_files():
        build_dataset(Pictures(), tmp_path / "new", OPTIONS)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    full = r"--out: \S+ cannot be written to \(Not a directory\); choose a writable folder"
    with pytest.raises(UserError, match=full):
        build_dataset(Pictures(), tmp_path / "file" / "new", OPTIONS)


@dataclass(frozen=True)
class KillingSource(Pictures):
    """A source that kills the process that reads it."""

    def load(self, number: int) -> Sample:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_killed_worker_is_one_line(tmp_path: Path) -> None:
    killed = r"^worker \d \(process \d+\) was killed by SIGKILL; .*--num-workers \(now 2\)$"
    with pytest.raises(UserError, match=killed):
        build_dataset(KillingSource(), tmp_path / "new", OPTIONS, ProcessPool(2))
    assert list(tmp_path.iterdir()) == []


def test_worker_error_fails_the_build(tmp_path: Path) -> None:
    with pytest.raises(BreakOffError):
        build_dataset(FailingSource(), tmp_path / "new", OPTIONS, ProcessPool(2))
    assert not (tmp_path / "new").exists()
