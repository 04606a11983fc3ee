"""Save and restore the complete state of a run, even after it was killed or with another number of ranks."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch

from adadf_dist.checkpoint.compatibility import check_classes_match, check_config_compatible
from adadf_dist.checkpoint.progress import TrainingProgress
from adadf_dist.checkpoint.storage import (
    CHECKPOINT_VERSION,
    completed_epochs,
    link_atomically,
    read_checkpoint,
    save_checkpoint,
)
from adadf_dist.config.fields import Role
from adadf_dist.config.keys import flatten, keys_with
from adadf_dist.config.load import to_dict
from adadf_dist.config.schema import Config
from adadf_dist.console.logs import get_logger
from adadf_dist.data.identity import moved_files
from adadf_dist.data.preprocessing import Preprocessing
from adadf_dist.distributed.world import World
from adadf_dist.errors import DiskFullError, UserError
from adadf_dist.files.disk_space import retry_on_full_disk
from adadf_dist.files.old_formats import upgrade_fields

logger = get_logger(__name__)

ADDED_PARTS = ("data",)
"""Parts of the state that older checkpoints lack. Such checkpoints still load, with a warning."""

CHECKPOINT_PATTERN = re.compile(r"checkpoint-(\d{4})-(\d{6})\.pt")


class Stateful(Protocol):
    """Object with state to save and restore. `state_dict` may be a collective, so every rank must call it."""

    def state_dict(self) -> Mapping[str, object]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class CheckpointManager:
    """Saves and restores the checkpoints of a run folder: `checkpoint-EPOCH-BATCH.pt` and `selected.pt`."""

    def __init__(
        self,
        config: Config,
        world: World,
        parts: Mapping[str, Stateful],
        progress: TrainingProgress,
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
    def selected_path(self) -> Path:
        return self.folder / "selected.pt"

    def should_save(self) -> bool:
        """Return whether a mid-epoch checkpoint is due, according to the number of steps or to rank 0's clock.

        Collective: every rank must call this.
        """
        settings = self.config.checkpoint
        by_step = settings.save_every_steps > 0 and self.progress.step % settings.save_every_steps == 0
        if by_step or not settings.save_every_minutes or self.progress.step % self.config.runtime.stop_check_steps:
            return by_step
        elapsed = time.monotonic() - self._saved_at
        return bool(self.world.broadcast_object(elapsed >= settings.save_every_minutes * 60))

    def save(self, skippable: bool = False) -> Path:
        """Save the state of the run atomically. Collective: every rank must call this.

        If the disk is full, retries until a timeout and then raises `DiskFullError`. If `skippable`, logs a warning
        and skips this checkpoint instead.
        """
        self.world.heartbeat.beat("saving a checkpoint")
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
            self._write(content, path, skippable)
        self._saved_at = time.monotonic()
        self.world.barrier()
        return path

    def _write(self, content: Mapping[str, object], path: Path, skippable: bool) -> None:
        def write() -> None:
            save_checkpoint(content, path)
            if self.progress.batch == 0 and self.progress.best_epoch == self.progress.epoch:
                link_atomically(path, self.selected_path)

        timeout_s = 0.0 if skippable else self.config.runtime.timeout_s
        try:
            retry_on_full_disk(write, timeout_s, self.world.heartbeat.wait_for_disk)
        except DiskFullError as error:
            if not skippable:
                raise
            logger.warning(f"{error}; checkpoint skipped")
            return
        self._prune()

    def restore(self) -> Path | None:
        """Load the checkpoint that the `resume` setting selects, and return its path, or None for a new run.

        Raises `UserError` if no checkpoint is valid, or if it belongs to a run with a different configuration.
        """
        found: Any = self.world.broadcast_object(self._find_resume_checkpoint() if self.world.is_main else None)
        if found is None:
            return None
        path, message = found
        if message:
            raise UserError(message)
        self.load(path)
        return Path(path)

    def load(self, path: Path | str) -> None:
        content = read_checkpoint(path)
        has_steps = content["progress"]["step"] > 0
        now, finished = to_dict(self.config), content["progress"]["epoch"]
        moved = moved_files(content.get("data"), dict(flatten(now)))
        check_config_compatible(
            content["config"], now, path, finished, () if has_steps else keys_with(Role.ARCHITECTURE), moved
        )
        check_classes_match(content["preprocessing"], self.preprocessing, path)
        for name, part in self.parts.items():
            if not has_steps and name != "engine":  # initial weights only: everything else starts fresh
                continue
            if name not in content and name in ADDED_PARTS:
                logger.warning(
                    f"{path}: written by an older version that did not record a digest of the data; make sure that "
                    "the data has not changed"
                )
                continue
            if name not in content:
                raise UserError(f"{path}: not a checkpoint of a compatible run (it contains no {name} state)")
            part.load_state_dict(content[name])
        for key, value in upgrade_fields(content["progress"]).items():
            setattr(self.progress, key, value)
        torch.set_rng_state(content["rng"])
        if self.world.is_main:
            self._restore_selected(Path(path))
        best = self.world.broadcast_object((self.progress.best_epoch, self.progress.best_accuracy))
        self.progress.best_epoch, self.progress.best_accuracy = best  # type: ignore[misc]

    def _restore_selected(self, path: Path) -> None:
        """Ensure that `selected.pt` is the checkpoint of the best epoch so far.

        It can be outdated or missing after a kill, after falling back from a corrupt checkpoint, or when starting from
        another folder. If the best epoch's checkpoint is lost, warn and select among later epochs only.
        """
        best = self.progress.best_epoch
        for candidate in (self.selected_path, path, path.with_name("selected.pt")):
            if best and candidate.exists() and completed_epochs(candidate) == best:
                if candidate != self.selected_path:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    link_atomically(candidate, self.selected_path)
                return
        if best:
            logger.warning(
                f"{self.selected_path}: the checkpoint of the best epoch ({best}) is missing; "
                "the best epoch will be selected from the remaining epochs"
            )
            self.progress.best_epoch, self.progress.best_accuracy = 0, -1.0

    def _check_finite(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Raise `UserError` if any weight is not finite: gradients can be non-finite even if the loss is finite."""
        for name, weight in weights.items():
            if not torch.isfinite(weight).all():
                raise UserError(
                    f"step {self.progress.step}: non-finite values in parameter {name}; the last checkpoint in "
                    f"{self.folder} is still valid, but training has diverged: start a new run with another --out and "
                    "a lower optimizer.lr"
                )

    def list_checkpoints(self) -> list[Path]:
        """Return the checkpoints in the run folder, newest first."""
        if not self.folder.is_dir():
            return []
        return sorted((p for p in self.folder.iterdir() if CHECKPOINT_PATTERN.fullmatch(p.name)), reverse=True)

    def _find_resume_checkpoint(self) -> tuple[str, str] | None:
        """Return (path, "") for a checkpoint to load, ("", message) for an error, or None for a new run.

        Called on rank 0 only.
        """
        resume = self.config.resume
        if resume not in ("auto", "never"):
            return resume, ""
        saved = self.list_checkpoints()
        if resume == "never" and saved:
            return "", (
                f"{self.config.out} already contains a run; choose another --out, or pass --resume auto to resume it"
            )
        problems = []
        for path in saved:
            try:
                read_checkpoint(path)
                return str(path), ""
            except UserError as error:
                problems.append(str(error))
                logger.warning(f"{error}; falling back to the previous checkpoint")
        if problems:
            return (
                "",
                f"{self.config.out}: no valid checkpoint found ({problems[0]}); start a new run with another --out",
            )
        return None

    def _prune(self) -> None:
        for path in self.list_checkpoints()[self.config.checkpoint.keep_last :]:
            path.unlink()
        for path in self.folder.glob("*.partial"):  # left by a kill during a write
            path.unlink()
