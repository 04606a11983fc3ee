"""File locks, which the kernel drops when a process ends: a kill leaves nothing behind.

Everything that takes a lock takes it here, so that a file system without locks (NFS without its lock service, some
object-store mounts) is one message everywhere, and `probe` can look for it before a run.
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
    """Who holds a lock."""

    PROCESS = "process"
    """This process alone (POSIX): child processes that inherit the file do not keep it after a kill."""
    FILE = "file"
    """The open file (flock): two locks of one process exclude each other, and it may be shared."""


def lock(file: IO[Any], owner: Owner, setting: str, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file until it is closed.

    `setting` is the option that chose its folder, for the message. Returns whether it is ours: False, without `wait`,
    while another holds it. Raises `UserError` where the file system has no locks.
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
            f"{setting}: {folder} cannot be locked ({error.strerror}), and without locks two processes could write "
            f"there at once; choose a folder on another file system for {setting}, or have file locks turned on (on "
            "NFS: its lock service, or NFS 4)"
        ) from None
    return True


def probe(folder: Path, owner: Owner, setting: str) -> None:
    """Try a lock in an existing folder, and leave nothing behind. Raises `UserError` as `lock` does."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".lock-") as file:
        lock(file.file, owner, setting)
