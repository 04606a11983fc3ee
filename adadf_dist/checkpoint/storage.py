"""A checkpoint as a file: written whole or not at all, read without running a word of it."""

from __future__ import annotations

import errno
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

CHECKPOINT_VERSION = 1


def save_checkpoint(content: Mapping[str, object], path: Path) -> None:
    """Write under a temporary name, sync, rename: the final name is never half a file.

    A full disk is a `DiskFullError`, an unwritable one a `UserError`; what was there before is still there.
    """
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        fsync_dir(path.parent)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        if is_disk_full(error):
            needed, free = tensor_bytes(content), free_bytes(path.parent)
            raise DiskFullError(
                f"{path.parent}: no room for {path.name}, which needs {needed} bytes where {free} are free; "
                "free some space, or start again with a lower checkpoint.keep"
            ) from None
        raise UserError(
            f"{path}: could not be written ({error}); free some space or give another --out; "
            "the run goes on from its last checkpoint when started again"
        ) from None


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a write failed for want of room; torch's writer raises an error of its own over the system's."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def free_bytes(folder: Path) -> int:
    """0 where nobody knows."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def tensor_bytes(content: object) -> int:
    """Of the tensors in nested content, which is all but a few kilobytes of a checkpoint."""
    if isinstance(content, torch.Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, Mapping):
        return sum(tensor_bytes(value) for value in content.values())
    return 0


def link_atomically(path: Path, name: Path) -> None:
    """Give a finished file a second name, replacing what had it; a copy where links are not to be had."""
    partial = name.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    try:
        os.link(path, partial)
    except OSError:
        partial.write_bytes(path.read_bytes())
    partial.replace(name)


def fsync_dir(folder: Path) -> None:
    """Make a rename last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """A checkpoint's content: plain data and tensors only. Raises `UserError` for anything else.

    Every byte is checked: torch itself would load a checkpoint in which the disk turned some over.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; name a checkpoint file in it") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: holds more than tensors and plain data, which is never loaded; not a checkpoint"
        ) from None
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: torn or not a checkpoint ({error})") from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise UserError(f"{path}: torn or not a checkpoint ({single_line(error, 120)})") from None
    if damaged is not None:
        raise UserError(f"{path}: torn or not a checkpoint (its part {damaged} is damaged)")
    if not isinstance(content, dict) or not isinstance(content.get("version"), int):
        raise UserError(f"{path}: not a checkpoint of adadf_dist")
    if content["version"] > CHECKPOINT_VERSION:
        raise UserError(
            f"{path}: written by a newer version (format {content['version']}, this one reads "
            f"{CHECKPOINT_VERSION}); upgrade adadf_dist"
        )
    parts = {"config", "preprocessing", "progress", "rng"}
    if not parts <= content.keys() or set(content["progress"]) != {field.name for field in fields(TrainingProgress)}:
        raise UserError(f"{path}: torn or not a checkpoint of adadf_dist")
    return content


def completed_epochs(path: Path) -> int:
    """The epochs that the model in a checkpoint has finished; -1 for a file that is none."""
    try:
        progress = read_checkpoint(path)["progress"]
    except UserError:
        return -1
    return int(progress["epoch"]) if progress["batch"] == 0 else -1
