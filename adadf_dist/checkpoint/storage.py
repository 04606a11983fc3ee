"""Checkpoint files: written atomically, and read without executing code from them."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from adadf_dist.checkpoint.progress import TrainingProgress
from adadf_dist.errors import DiskFullError, UserError, single_line
from adadf_dist.files.atomic import DISK_FULL, atomic_write, replace_when_complete, sync_to_disk

CHECKPOINT_VERSION = 1


def save_checkpoint(content: Mapping[str, object], path: Path) -> None:
    """Write a checkpoint atomically and flush it to disk.

    Raises `DiskFullError` if the disk is full and `UserError` for other errors; an existing file is left unchanged.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_when_complete(path, sync=True) as partial, partial.open("wb") as file:
            torch.save(dict(content), file)
        sync_to_disk(path.parent)
    except (OSError, RuntimeError) as error:
        if is_disk_full(error):
            needed, free = tensor_bytes(content), free_bytes(path.parent)
            raise DiskFullError(
                f"{path.parent}: not enough disk space for {path.name} ({needed} bytes needed, {free} free); "
                "free some space, or lower checkpoint.keep_last"
            ) from None
        raise UserError(
            f"{path}: could not be written ({error}); free some space and run the same command to resume from the last "
            "checkpoint, or start a new run with another --out"
        ) from None


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether a write failed because the disk is full, even if torch wrapped the system error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


def free_bytes(folder: Path) -> int:
    """Return the number of free bytes on the disk that contains the folder; 0 if unknown."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def tensor_bytes(content: object) -> int:
    """Return the total bytes of the tensors in nested mappings, which is close to the size of the checkpoint file."""
    if isinstance(content, torch.Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, Mapping):
        return sum(tensor_bytes(value) for value in content.values())
    return 0


def link_atomically(path: Path, name: Path) -> None:
    """Create a hard link `name` to the file `path`, replacing any existing file; copy if links are unsupported."""
    with atomic_write(name) as partial:
        partial.unlink(missing_ok=True)
        try:
            os.link(path, partial)
        except OSError:
            partial.write_bytes(path.read_bytes())


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint. Raises `UserError` if it is invalid or contains anything but plain data and tensors.

    Verifies all checksums, because `torch.load` alone accepts files with flipped bits.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; check the path") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; pass one of the checkpoint files in it") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: contains pickled objects, which could run code when loaded; not an adadf_dist checkpoint"
        ) from None
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: truncated or not a checkpoint ({error})") from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise UserError(f"{path}: truncated or not a checkpoint ({single_line(error, 120)})") from None
    if damaged is not None:
        raise UserError(f"{path}: truncated or not a checkpoint (its entry {damaged} is corrupt)")
    if not isinstance(content, dict) or not isinstance(content.get("version"), int):
        raise UserError(f"{path}: not an adadf_dist checkpoint")
    if content["version"] > CHECKPOINT_VERSION:
        raise UserError(
            f"{path}: written by a newer version (format {content['version']}, but this version reads up to "
            f"{CHECKPOINT_VERSION}); upgrade adadf_dist"
        )
    parts = {"config", "preprocessing", "progress", "rng"}
    if not parts <= content.keys() or set(content["progress"]) != {field.name for field in fields(TrainingProgress)}:
        raise UserError(f"{path}: truncated or not an adadf_dist checkpoint")
    return content


def completed_epochs(path: Path) -> int:
    """Return the number of finished epochs recorded in a checkpoint; -1 if it is invalid or from within an epoch."""
    try:
        progress = read_checkpoint(path)["progress"]
    except UserError:
        return -1
    return int(progress["epoch"]) if progress["batch"] == 0 else -1
