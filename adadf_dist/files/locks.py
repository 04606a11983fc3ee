"""File locks, which the kernel releases when a process ends, so that a kill leaves no stale locks.

All locks use this module, so a file system without locks (NFS without its lock service, some object-store mounts) gives
the same message everywhere, and `probe` can test for it before a run.
"""

from __future__ import annotations

import errno
import fcntl
import tempfile
from enum import Enum
from pathlib import Path
from typing import IO, Any

from adadf_dist.errors import UserError


class Owner(Enum):
    """Owner of a lock."""

    PROCESS = "process"
    """The process (POSIX lock): child processes that inherit the file do not keep the lock after a kill."""
    FILE = "file"
    """The open file (flock): two locks of one process exclude each other, and locks may be shared."""


def lock(file: IO[Any], owner: Owner, setting: str, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file until it is closed.

    `setting`: option that set the folder, for the message. Returns whether the lock was acquired: without `wait`, False
    if another owner holds it. Raises `UserError` if the file system has no locks.
    """
    take = fcntl.lockf if owner is Owner.PROCESS else fcntl.flock
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        take(file, how)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        folder = Path(file.name).parent
        raise UserError(
            f"{setting}: {folder} cannot be locked ({error.strerror}), but locks are needed to prevent two processes "
            f"from writing there; choose a folder on another file system for {setting}, or enable file locks (on NFS: "
            "the lock service, or NFS 4)"
        ) from None
    return True


def probe(folder: Path, owner: Owner, setting: str) -> None:
    """Test whether an existing folder supports locks; leaves no file. Raises `UserError` as `lock` does."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".lock-") as file:
        lock(file.file, owner, setting)
