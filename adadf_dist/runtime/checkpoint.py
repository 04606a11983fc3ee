"""Everything a run is, saved whole and found again: after a kill, on another number of ranks."""

from __future__ import annotations

import os
import pickle
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import torch

from adadf_dist.config import Config
from adadf_dist.data.preprocess import Preprocessing
from adadf_dist.errors import UserError
from adadf_dist.settings import flatten, to_dict
from adadf_dist.world import World

CHECKPOINT_VERSION = 1

FREE_KEYS = (
    "out",
    "resume",
    "epochs",
    "data.shards",
    "data.cache",
    "data.cache_size_gb",
    "data.embedded_faces",
    "data.workers",
    "data.prefetch",
    "evaluation.test",
    "checkpoint.",
    "runtime.timeout_s",
    "runtime.stop_every",
    "runtime.log_every",
    "runtime.tensorboard",
)
"""Keys (or sections, ending in a dot) that may change when a run goes on: none of them changes its numbers, but for
`epochs` under the cosine schedule."""

NAME = re.compile(r"checkpoint-(\d{4})-(\d{6})\.pt")


@dataclass
class Progress:
    """How far a run is, and what it has measured so far."""

    epoch: int = 0
    """Finished epochs."""
    batch: int = 0
    """Finished batches of the epoch under way."""
    step: int = 0
    """Finished steps of the run."""
    best_epoch: int = 0
    """Epoch (from 1) with the best validation accuracy so far; 0: none yet. Ties stay with the earlier one."""
    best_accuracy: float = -1.0
    seconds: float = 0.0
    """Time spent in finished training passes, over all the run's sessions."""
    epochs: list[dict[str, object]] = field(default_factory=list)
    """One record a finished epoch, as in metrics.jsonl."""

    def finish_epoch(self, accuracy: float, record: dict[str, object]) -> None:
        """Count an epoch with its validation accuracy."""
        self.epoch += 1
        self.batch = 0
        self.epochs.append(record)
        if accuracy > self.best_accuracy:
            self.best_epoch, self.best_accuracy = self.epoch, accuracy


class Stateful(Protocol):
    """State over all ranks: `state_dict` may be a collective, so every rank calls it."""

    def state_dict(self) -> Mapping[str, object]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Checkpoints:
    """The checkpoints of a run folder: `checkpoint-EPOCH-BATCH.pt` and `selected.pt`."""

    def __init__(
        self,
        config: Config,
        world: World,
        parts: Mapping[str, Stateful],
        progress: Progress,
        preprocessing: Preprocessing,
    ) -> None:
        self.config = config
        self.world = world
        self.parts = parts
        self.progress = progress
        self.preprocessing = preprocessing
        self.folder = Path(config.out) / "checkpoints"
        self._saved_at = time.monotonic()

    @property
    def selected(self) -> Path:
        return self.folder / "selected.pt"

    def due(self) -> bool:
        """Whether a save in mid-epoch is due. Rank 0's clock decides, so all ranks call this together."""
        rules = self.config.checkpoint
        by_step = rules.every_steps > 0 and self.progress.step % rules.every_steps == 0
        if by_step or not rules.every_minutes or self.progress.step % self.config.runtime.stop_every:
            return by_step
        elapsed = time.monotonic() - self._saved_at
        return bool(self.world.share(elapsed >= rules.every_minutes * 60))

    def save(self) -> Path:
        """Write the run's state under its final name, whole or not at all. A collective."""
        path = self.folder / f"checkpoint-{self.progress.epoch:04d}-{self.progress.batch:06d}.pt"
        content = {
            "version": CHECKPOINT_VERSION,
            "config": to_dict(self.config),
            "preprocessing": self.preprocessing.to_dict(),
            "progress": asdict(self.progress),
            "rng": torch.get_rng_state(),
            **{name: dict(part.state_dict()) for name, part in self.parts.items()},
        }
        self._check_finite(content["engine"]["model"])  # type: ignore[index]
        if self.world.is_main:
            write_whole(content, path)
            if self.progress.batch == 0 and self.progress.best_epoch == self.progress.epoch:
                link_whole(path, self.selected)
            self._prune()
        self._saved_at = time.monotonic()
        self.world.barrier()
        return path

    def restore(self) -> Path | None:
        """Load what `resume` asks for into every part. Returns the file, or None for a fresh start.

        Raises `UserError` when the run folder holds another run, naming the key that differs.
        """
        found: Any = self.world.share(self._find_for_resume() if self.world.is_main else None)
        if found is None:
            return None
        path, message = found
        if message:
            raise UserError(message)
        self.load(path)
        return Path(path)

    def load(self, path: Path | str) -> None:
        content = read_checkpoint(path)
        check_same_run(content["config"], to_dict(self.config), path)
        check_same_classes(content["preprocessing"], self.preprocessing, path)
        for name, part in self.parts.items():
            if name not in content:
                raise UserError(f"{path}: has no {name}; not a checkpoint of a run like this one")
            part.load_state_dict(content[name])
        for key, value in content["progress"].items():
            setattr(self.progress, key, value)
        torch.set_rng_state(content["rng"])
        if self.world.is_main:
            self._keep_selected(Path(path))
        best = self.world.share((self.progress.best_epoch, self.progress.best_accuracy))
        self.progress.best_epoch, self.progress.best_accuracy = best  # type: ignore[misc]

    def _keep_selected(self, path: Path) -> None:
        """Make sure that `selected.pt` is of the best epoch so far: a kill, a torn file, a start from another folder
        can leave an older one, or none. Where the best epoch's is gone, selection goes on without it, and says so."""
        best = self.progress.best_epoch
        for candidate in (self.selected, path, path.with_name("selected.pt")):
            if best and candidate.exists() and epoch_of(candidate) == best:
                if candidate != self.selected:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    link_whole(candidate, self.selected)
                return
        if best:
            print(
                f"warning: {self.selected}: the checkpoint of epoch {best}, the best so far, is gone; "
                "the selected epoch will be one of those to come",
                file=sys.stderr,
                flush=True,
            )
            self.progress.best_epoch, self.progress.best_accuracy = 0, -1.0

    def _check_finite(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Raises `UserError`: weights can be spoilt behind a loss that is finite, by its gradient."""
        for name, weight in weights.items():
            if not torch.isfinite(weight).all():
                raise UserError(
                    f"step {self.progress.step}: the weights {name} are not finite; the last checkpoint in "
                    f"{self.folder} is good, but a new run under another --out needs a lower optimizer.lr"
                )

    def saved(self) -> list[Path]:
        """Checkpoints in the run folder, newest first."""
        if not self.folder.is_dir():
            return []
        return sorted((p for p in self.folder.iterdir() if NAME.fullmatch(p.name)), reverse=True)

    def _find_for_resume(self) -> tuple[str, str] | None:
        """(path, "") to load, ("", message) for the user, None to start afresh. Rank 0 looks, all agree."""
        resume = self.config.resume
        if resume not in ("auto", "never"):
            return resume, ""
        saved = self.saved()
        if resume == "never" and saved:
            return "", (
                f"{self.config.out} already holds a run; give --out another folder, or --resume auto to go on with it"
            )
        problems = []
        for path in saved:
            try:
                read_checkpoint(path)
                return str(path), ""
            except UserError as error:
                problems.append(str(error))
                print(f"warning: {error}; trying the one before it", file=sys.stderr, flush=True)
        if problems:
            return (
                "",
                f"{self.config.out}: no whole checkpoint is left ({problems[0]}); start again with --out",
            )
        return None

    def _prune(self) -> None:
        for path in self.saved()[self.config.checkpoint.keep :]:
            path.unlink()
        for path in self.folder.glob("*.partial"):  # what a kill inside a write left behind
            path.unlink()


def write_whole(content: Mapping[str, object], path: Path) -> None:
    """Write under a temporary name, sync, rename: the final name is never half a file.

    A full or unwritable disk is a `UserError`; what was there before is still there.
    """
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise UserError(
            f"{path}: could not be written ({error}); free some space or give another --out; "
            "the run goes on from its last checkpoint when started again"
        ) from None


def link_whole(path: Path, name: Path) -> None:
    """Give a finished file a second name, replacing what had it; a copy where links are not to be had."""
    partial = name.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(path, partial)
    except OSError:
        partial.write_bytes(path.read_bytes())
    partial.replace(name)


def sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """A checkpoint's content: plain data and tensors only. Raises `UserError` for anything else."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; name a checkpoint file in it") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: holds more than tensors and plain data, which is never loaded; not a checkpoint"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise UserError(f"{path}: torn or not a checkpoint ({' '.join(str(error).split())[:120]})") from None
    if not isinstance(content, dict) or not isinstance(content.get("version"), int):
        raise UserError(f"{path}: not a checkpoint of adadf_dist")
    if content["version"] > CHECKPOINT_VERSION:
        raise UserError(
            f"{path}: written by a newer version (format {content['version']}, this one reads "
            f"{CHECKPOINT_VERSION}); upgrade adadf_dist"
        )
    parts = {"config", "preprocessing", "progress", "rng"}
    if not parts <= content.keys() or set(content["progress"]) != {field.name for field in fields(Progress)}:
        raise UserError(f"{path}: torn or not a checkpoint of adadf_dist")
    return content


def epoch_of(path: Path) -> int:
    """The epochs that the model in a checkpoint has finished; -1 for a file that is none."""
    try:
        progress = read_checkpoint(path)["progress"]
    except UserError:
        return -1
    return int(progress["epoch"]) if progress["batch"] == 0 else -1


def check_same_run(saved: Mapping[str, object], now: Mapping[str, object], path: Path | str) -> None:
    # a key that did not exist yet had, in effect, its default
    before, after = {**dict(flatten(to_dict(Config()))), **dict(flatten(saved))}, dict(flatten(now))
    cosine = after.get("optimizer.schedule") == "cosine"
    for key in sorted(before.keys() | after.keys()):
        free = any(key.startswith(free) if free.endswith(".") else key == free for free in FREE_KEYS)
        if key == "epochs" and cosine:  # every epoch's rate depends on their number
            free = False
        if not free and before.get(key) != after.get(key):
            raise UserError(
                f"{path}: was trained with {key} = {before.get(key)}, now it is {after.get(key)}; "
                f"give --{key} {before.get(key)} to go on, or --out another folder for a new run"
            )


def check_same_classes(saved: Mapping[str, Any], now: Preprocessing, path: Path | str) -> None:
    classes = tuple(saved["classes"])
    if classes != now.classes:
        raise UserError(
            f"{path}: was trained on the classes {', '.join(classes)}; the dataset has {', '.join(now.classes)}: "
            "give the dataset it was trained on as data.shards"
        )
