"""File locks. The kernel releases them when a process ends, so a killed process leaves no stale locks.

All locks use this module, so a file system without locks (NFS without its lock service, some object-store mounts) gives
the same message everywhere, and `probe` can test for it before a run. They are `flock` locks of one open file: two
locks of one process exclude each other, child processes do not keep a lock of their parent, and NFS passes them to its
server. Lock files are never removed: a lock on a removed file excludes no one.
"""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from adadf_dist.errors import UserError

POLL_S = 0.2
"""Seconds between attempts to acquire a lock that another process holds."""


@contextmanager
def exclusive_lock(path: Path, setting: str, give_up: Callable[[], bool] | None = None) -> Iterator[bool]:
    """Lock a file while the block runs, and yield whether the lock was acquired. Creates the file and its folder.

    `setting`: option that sets the folder, for messages. If the lock is held elsewhere, wait until it is released or
    `give_up` returns true; without `give_up`, do not wait. Raises `UserError` if the folder is not writable or does not
    support locks.
    """
    lock = FileLock(path, thread_local=False, poll_interval=POLL_S, fallback_to_soft=False)
    acquired = True
    with lock_errors(path, setting):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=give_up is not None, cancel_check=give_up)
        except Timeout:
            acquired = False
    try:
        yield acquired
    finally:
        lock.release()


@contextmanager
def shared_lock(path: Path, setting: str) -> Iterator[None]:
    """Hold a shared lock on a file while the block runs, first waiting until no exclusive lock is held.

    `filelock` shares locks only through a database or marker files, neither of which ends with the process everywhere.
    """
    with ExitStack() as opened:
        with lock_errors(path, setting):
            path.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(opened.enter_context(path.open("a", encoding="utf-8")), fcntl.LOCK_SH)
        yield


def probe(folder: Path, setting: str) -> None:
    """Raise `UserError` if an existing folder is not writable or does not support locks. Leaves no file behind."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".lock-") as file, exclusive_lock(Path(file.name), setting):
        pass


@contextmanager
def lock_errors(path: Path, setting: str) -> Iterator[None]:
    """Convert an operating-system error to a `UserError`. An error without a file name comes from locking itself."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise UserError(
                f"{setting}: {path.parent} cannot be written to ({error.strerror}); choose a writable folder"
            ) from None
        raise UserError(
            f"{setting}: {path.parent} cannot be locked ({error.strerror}), but locks keep two processes from "
            f"writing there at the same time; choose a folder on another file system for {setting}, or enable file "
            "locks (on NFS: the lock service, or NFS 4)"
        ) from None
