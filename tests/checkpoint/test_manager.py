"""Which checkpoints are saved, kept and resumed, in one process with small states."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from adadf_dist.checkpoint import storage
from adadf_dist.checkpoint.compatibility import check_config_compatible
from adadf_dist.checkpoint.manager import CheckpointManager
from adadf_dist.checkpoint.progress import TrainingProgress
from adadf_dist.checkpoint.storage import (
    completed_epochs,
    link_atomically,
    read_checkpoint,
    save_checkpoint,
    tensor_bytes,
)
from adadf_dist.config.load import override, to_dict
from adadf_dist.config.schema import Config
from adadf_dist.data.preprocessing import Preprocessing
from adadf_dist.errors import DiskFullError, UserError
from tests.helpers.ranks import single_process_world


class Part:
    """A state of one tensor, without input files."""

    def __init__(self, value: float) -> None:
        self.state: Mapping[str, Any] = {}
        self.fill(value)

    def fill(self, value: float) -> None:
        self.state = {"model": {"w": torch.full((3,), value)}, "files": {}}

    def state_dict(self) -> Mapping[str, Any]:
        return self.state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.state = state

    def value(self) -> float:
        return float(self.state["model"]["w"][0])


class Run:
    """A run folder and a process that trains in it; keyword arguments are config keys, with `__` for the dot."""

    def __init__(self, out: Path, names: tuple[str, ...] = ("data", "engine", "history"), **changed: object) -> None:
        values = {key.replace("__", "."): value for key, value in changed.items()}
        self.parts = {name: Part(-1.0) for name in names}
        self.progress = TrainingProgress()
        config = override(Config(), {"out": str(out), **values})
        shown = Preprocessing(32, ("sad", "happy"), "torch")
        self.checkpoints = CheckpointManager(config, single_process_world(), self.parts, self.progress, shown)

    def save(self, value: float, **progress: Any) -> Path:
        for part in self.parts.values():
            part.fill(value)
        for name, number in progress.items():
            setattr(self.progress, name, number)
        return self.checkpoints.save()

    def epochs(self, *accuracies: float) -> None:
        for accuracy in accuracies:
            self.progress.step += 4
            self.progress.finish_epoch(accuracy, {"accuracy": accuracy})
            self.save(float(self.progress.epoch))

    def names(self) -> list[str]:
        return sorted(path.name for path in self.checkpoints.folder.iterdir())


def full(*args: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_progress_counts_epochs_and_the_earliest_best() -> None:
    progress = TrainingProgress(batch=3)
    best = []
    for number, accuracy in enumerate([0.0, 0.5, 0.4, 0.5, 0.6]):
        progress.finish_epoch(accuracy, {"number": number})
        best.append((progress.epoch, progress.batch, progress.best_epoch, progress.best_accuracy))
    assert best == [(1, 0, 1, 0.0), (2, 0, 2, 0.5), (3, 0, 2, 0.5), (4, 0, 2, 0.5), (5, 0, 5, 0.6)]
    assert progress.epochs == [{"number": number} for number in range(5)]


def test_positions_are_consecutive() -> None:
    """The position at and after each step; four batches per epoch."""
    progress = TrainingProgress()
    for step in range(12):
        position = progress.position(4)
        assert position == (step // 4, step, step / 4, 4)
        progress.batch += 1
        progress.step += 1
        assert progress.last_position(4) == position
        if progress.batch == 4:
            progress.finish_epoch(0.0, {})


def test_resumed_run_has_the_saved_position(tmp_path: Path) -> None:
    first = Run(tmp_path)
    first.epochs(0.3, 0.2)
    torch.manual_seed(5)
    path = first.save(9.0, batch=2, step=10, seconds=1.5)
    drawn = torch.rand(3)
    assert path.name == "checkpoint-0002-000002.pt"
    second = Run(tmp_path)
    assert second.checkpoints.restore() == path
    assert asdict(second.progress) == asdict(first.progress)
    assert {part.value() for part in second.parts.values()} == {9.0}
    assert torch.equal(torch.rand(3), drawn)
    assert Run(tmp_path / "new").checkpoints.restore() is None


def test_newest_and_selected_checkpoints_are_kept(tmp_path: Path) -> None:
    run = Run(tmp_path, checkpoint__keep_last=2)
    run.epochs(0.5, 0.1, 0.5)
    (run.checkpoints.folder / "checkpoint-0003-000001.partial").touch()
    run.epochs(0.2)
    assert run.names() == ["checkpoint-0003-000000.pt", "checkpoint-0004-000000.pt", "selected.pt"]
    assert completed_epochs(run.checkpoints.selected_path) == 1
    run.save(5.0, batch=1)
    assert completed_epochs(run.checkpoints.selected_path) == 1
    run.progress.batch = 0
    run.epochs(0.6)
    run.save(6.0, batch=1)  # mid-epoch, right after the best epoch: its weights are not the selected ones
    assert read_checkpoint(run.checkpoints.selected_path)["engine"]["model"]["w"].tolist() == [5.0] * 3


def test_save_is_due_by_steps(tmp_path: Path) -> None:
    due = {}
    for every in (0, 3):
        run = Run(tmp_path, checkpoint__save_every_steps=every, checkpoint__save_every_minutes=0)
        due[every] = []
        for step in range(1, 10):
            run.progress.step = step
            if run.checkpoints.should_save():
                due[every].append(step)
    assert due == {0: [], 3: [3, 6, 9]}


def test_save_is_due_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interval of two minutes, checked every second step; a step takes 50 seconds."""
    now = [1000.0]
    monkeypatch.setattr("adadf_dist.checkpoint.manager.time.monotonic", lambda: now[0])
    run, due = Run(tmp_path, checkpoint__save_every_minutes=2.0, runtime__stop_check_steps=2), []
    for step in range(1, 13):
        now[0] += 50.0
        run.progress.step = step
        if run.checkpoints.should_save():
            due.append(step)
            run.save(0.0)
    assert due == [4, 8, 12]


def test_damaged_checkpoints_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path, checkpoint__keep_last=3)
    run.epochs(0.3, 0.2, 0.1)
    newest, before, oldest = run.checkpoints.list_checkpoints()
    os.truncate(newest, newest.stat().st_size - 100)
    content = bytearray(before.read_bytes())
    place = content.index(torch.full((3,), 2.0).numpy().tobytes())
    content[place] ^= 1
    before.write_bytes(content)
    assert Run(tmp_path).checkpoints.restore() == oldest
    assert capsys.readouterr().err.count("falling back to the previous checkpoint") == 2
    oldest.write_bytes(b"")
    with pytest.raises(UserError, match="no valid checkpoint found"):
        Run(tmp_path).checkpoints.restore()


def test_incompatible_resume_is_rejected(tmp_path: Path) -> None:
    assert Run(tmp_path, resume="never").checkpoints.restore() is None
    Run(tmp_path).epochs(0.3)
    with pytest.raises(UserError, match="already contains a run"):
        Run(tmp_path, resume="never").checkpoints.restore()


def test_resume_copies_the_selected_checkpoint_or_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = Run(tmp_path / "old", checkpoint__keep_last=9)
    old.epochs(0.1, 0.9, 0.2)
    newest, second, _ = old.checkpoints.list_checkpoints()
    for path in (newest, second):  # the best epoch's checkpoint is beside the file, or is the file
        new = Run(tmp_path / path.stem, resume=str(path))
        new.checkpoints.restore()
        assert (completed_epochs(new.checkpoints.selected_path), new.progress.best_epoch) == (2, 2)
    old.checkpoints.selected_path.unlink()
    second.unlink()
    assert "warning" not in capsys.readouterr().err
    new = Run(tmp_path / "bereft", resume=str(newest))
    new.checkpoints.restore()
    assert "the checkpoint of the best epoch (2) is missing" in capsys.readouterr().err
    assert (new.progress.best_epoch, new.progress.best_accuracy) == (0, -1.0)
    new.epochs(0.0)
    assert (completed_epochs(new.checkpoints.selected_path), new.progress.best_epoch) == (4, 4)


def test_missing_checkpoint_parts_are_handled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Run(tmp_path, names=("engine", "history")).epochs(0.3)
    assert Run(tmp_path).checkpoints.restore() is not None
    assert "did not record a digest of the data" in capsys.readouterr().err
    with pytest.raises(UserError, match="contains no log state"):
        Run(tmp_path, names=("data", "engine", "history", "log")).checkpoints.restore()


def test_initial_weights_do_not_change_the_config(tmp_path: Path) -> None:
    """A checkpoint without progress: only the engine is loaded, and only the network must match."""
    path = Run(tmp_path / "imported").save(7.0)
    run = Run(tmp_path / "run", resume=str(path), loss__lambda_min=0.4)
    run.checkpoints.restore()
    assert {name: part.value() for name, part in run.parts.items()} == {"data": -1.0, "engine": 7.0, "history": -1.0}
    with pytest.raises(UserError, match=r"model\.attention_on was logits in the checkpoint but is features now"):
        Run(tmp_path / "other", resume=str(path), model__attention_on="features").checkpoints.restore()


def test_nonfinite_weights_are_not_saved(tmp_path: Path) -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(UserError, match="step 3: non-finite values in parameter w"):
            Run(tmp_path).save(value, step=3)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("changed", "refused"),
    [
        ({"out": "elsewhere", "runtime.log_every_steps": 7, "checkpoint.keep_last": 9}, ""),
        ({"loss.lambda_min": 0.3}, "loss.lambda_min"),
        ({"runtime.precision": "bf16"}, "runtime.precision"),
        ({"epochs": 5}, ""),
        ({"optimizer.schedule": "cosine"}, "optimizer.schedule"),
        ({"data.relabel_file": "/new/list.csv"}, "data.relabel_file"),
    ],
)
def test_resume_accepts_only_mutable_keys(changed: dict[str, Any], refused: str) -> None:
    saved = to_dict(override(Config(), {"data.relabel_file": "/old/list.csv", "optimizer.warmup_steps": 0}))
    now = to_dict(override(Config(), {"data.relabel_file": "/old/list.csv", "optimizer.warmup_steps": 0, **changed}))
    if not refused:
        check_config_compatible(saved, now, "x.pt", 1)
        return
    with pytest.raises(UserError, match=f"x.pt: config mismatch: {refused} was "):
        check_config_compatible(saved, now, "x.pt", 1)
    check_config_compatible(saved, now, "x.pt", 1, moved=[refused])


@pytest.mark.parametrize("saved", ["list.csv", "data/list.csv", "/srv/data/list.csv"])
def test_relative_path_of_an_older_version_is_the_same_file(saved: str) -> None:
    before = to_dict(override(Config(), {"data.relabel_file": saved}))
    check_config_compatible(before, to_dict(override(Config(), {"data.relabel_file": "/srv/data/list.csv"})), "x.pt", 1)
    with pytest.raises(UserError, match=r"data\.relabel_file"):
        check_config_compatible(
            before, to_dict(override(Config(), {"data.relabel_file": "/srv/other/lists.csv"})), "x.pt", 1
        )


def test_full_disk_stops_only_required_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, runtime__timeout_s=0.1)
    run.epochs(0.3)
    before = {name: (run.checkpoints.folder / name).read_bytes() for name in run.names()}
    monkeypatch.setattr(storage.os, "fsync", full)
    run.progress.batch = 1
    run.checkpoints.save(skippable=True)
    (line,) = capsys.readouterr().err.splitlines()
    needed = 3 * 3 * 4 + len(torch.get_rng_state())  # three parts of three float32
    assert "checkpoint skipped" in line and f"{needed} bytes needed" in line
    with pytest.raises(DiskFullError, match=r"not enough disk space for checkpoint-0001-000001\.pt"):
        run.checkpoints.save()
    assert {name: (run.checkpoints.folder / name).read_bytes() for name in run.names()} == before


def torchs_own(number: int) -> RuntimeError:
    """The error as torch's writer raises it, on top of the system's error."""
    error = RuntimeError("unexpected pos 64 vs 0")
    error.__context__ = OSError(number, os.strerror(number))
    return error


@pytest.mark.parametrize(
    ("error", "no_room"),
    [
        (OSError(errno.ENOSPC, "full"), True),
        (OSError(errno.EDQUOT, "quota"), True),
        (torchs_own(errno.ENOSPC), True),
        (OSError(errno.EIO, "broken"), False),
        (torchs_own(errno.EIO), False),
        (RuntimeError("something else"), False),
    ],
)
def test_failed_write_keeps_the_previous_file(
    error: Exception, no_room: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint({"a": 1}, tmp_path / "x.pt")

    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(storage.torch, "save", fail)
    with pytest.raises(UserError, match=r"x\.pt") as caught:
        save_checkpoint({"a": 2}, tmp_path / "x.pt")
    assert isinstance(caught.value, DiskFullError) is no_room
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]
    monkeypatch.undo()
    assert torch.load(tmp_path / "x.pt", weights_only=True) == {"a": 1}


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_replaces_what_had_it(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {"new.pt": "new", "selected.pt": "old", "selected.pt.partial": "left by a kill"}.items():
        (tmp_path / name).write_text(text)
    if not links:
        monkeypatch.setattr(storage.os, "link", full)
    link_atomically(tmp_path / "new.pt", tmp_path / "selected.pt")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"new.pt": "new", "selected.pt": "new"}
    assert (tmp_path / "new.pt").samefile(tmp_path / "selected.pt") is links


def test_nested_tensor_bytes_are_counted() -> None:
    nested = {"a": torch.zeros(3, 5), "b": {"c": torch.zeros(7, dtype=torch.float64), "d": "text"}, "e": 4}
    assert tensor_bytes(nested) == 3 * 5 * 4 + 7 * 8


def test_epoch_is_read_from_a_file(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.epochs(0.3, 0.4)
    assert [completed_epochs(path) for path in run.checkpoints.list_checkpoints()] == [2, 1]
    assert completed_epochs(run.save(1.0, batch=1)) == -1
    (tmp_path / "text.pt").write_text("no checkpoint")
    assert completed_epochs(tmp_path / "text.pt") == -1


@pytest.mark.parametrize("lacking", ["config", "preprocessing", "progress", "rng", "version"])
def test_incomplete_checkpoint_is_rejected(lacking: str, tmp_path: Path) -> None:
    content = dict(read_checkpoint(Run(tmp_path).save(1.0)))
    del content[lacking]
    save_checkpoint(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match="not an adadf_dist checkpoint"):
        read_checkpoint(tmp_path / "x.pt")
