"""A folder that appears whole or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from adadf_dist.data.manifest import MANIFEST
from adadf_dist.data.writer import can_write
from adadf_dist.errors import UserError

_LOCK = ".lock"


@contextmanager
def staged(out: Path, overwrite: bool) -> Iterator[Path]:
    """Yield an empty `OUT.partial` beside `out`, which becomes `out` when the block ends well and is removed when not.

    What a killed process left in `OUT.partial` is cleared away; another that is still writing there is an error.
    An existing dataset is replaced only with `overwrite`, and only once the new one is whole. Raises `UserError`.
    """
    check_replaceable(out, overwrite)
    partial = out.with_name(out.name + ".partial")
    with lock_folder(partial):
        try:
            with can_write(partial):
                clear(partial)
            yield partial
            with can_write(out):
                (partial / _LOCK).unlink()
                replace(partial, out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def lock_folder(folder: Path) -> TextIO:
    """Make the folder if need be and hold it until the returned file is closed. Raises `UserError`."""
    with can_write(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise UserError(f"{folder}: another process is building there; wait, or choose another folder") from None
        return lock


def check_replaceable(out: Path, overwrite: bool) -> None:
    """Raise `UserError` when something stands at `out` that must not be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / MANIFEST).is_file():
        raise UserError(f"{out}: exists and is no dataset folder; choose another --out")
    if not overwrite:
        raise UserError(f"{out}: holds a dataset already; add --overwrite to replace it, or choose another --out")


def clear(folder: Path) -> None:
    """Remove everything in a folder but its lock."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != _LOCK:
            entry.unlink()


def replace(new: Path, out: Path) -> None:
    """Rename `new` to `out`, and only then remove what stood there."""
    old = out.with_name(out.name + ".replaced")
    if out.exists() and any(out.iterdir()):
        if old.exists():
            shutil.rmtree(old)
        os.rename(out, old)
    os.rename(new, out)
    shutil.rmtree(old, ignore_errors=True)
