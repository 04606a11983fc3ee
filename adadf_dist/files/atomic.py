"""Atomic writes: a file has either its old or its complete new content, even if the process is killed."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adadf_dist.errors import DiskFullError, UserError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""`errno` values for a full disk or an exceeded quota."""


@contextmanager
def atomic_write(path: Path, *, sync: bool = False, partial: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path next to `path`; it replaces `path` if the block succeeds and is removed if it fails.

    The temporary path is `NAME.partial` by default, so that the next write replaces a partial file left by a killed
    process. `sync`: flush the file to disk before the replacement. Raises `UserError`, or `DiskFullError` if the disk
    is full.
    """
    with os_errors_as_user_errors(path), replace_when_complete(path, sync, partial) as temporary:
        yield temporary


@contextmanager
def replace_when_complete(path: Path, sync: bool = False, partial: Path | None = None) -> Iterator[Path]:
    """Write atomically like `atomic_write`, but do not convert operating-system errors."""
    partial = partial or path.with_name(path.name + ".partial")
    try:
        yield partial
        if sync:
            sync_to_disk(partial)
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str, *, sync: bool = False) -> None:
    """Write text atomically."""
    with atomic_write(path, sync=sync) as partial:
        partial.write_text(text, encoding="utf-8")


def sync_to_disk(path: Path) -> None:
    """Flush a file or a folder to disk, so that it survives a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def os_errors_as_user_errors(path: Path) -> Iterator[None]:
    """Convert an operating-system error in a block that writes `path` to a `UserError` with the file name."""
    try:
        yield
    except OSError as error:
        full = error.errno in (*DISK_FULL, errno.EFBIG)
        hint = "free some space, or write to another disk" if full else "choose a writable folder"
        kind = DiskFullError if error.errno in DISK_FULL else UserError
        raise kind(f"{error.filename or path}: cannot be written: {error.strerror or error}; {hint}") from None
