"""The run folder: one writer at a time, files whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adadf_dist.errors import TakenError, UserError
from adadf_dist.files import can_write


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Make the run folder and keep other runs out of it. Raises `UserError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"out: {folder} cannot be written ({error.strerror}); give another --out") from None
    with lock:
        try:
            # of this process alone: a lock that loader processes inherit would outlive a killed run
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):  # a file system without locks: no protection there
                raise UserError(f"out: {folder} cannot be locked ({error.strerror}); give another --out") from None
            raise TakenError(f"out: another run is writing into {folder}; stop it, or give another --out") from None
        yield


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with can_write(path):
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
