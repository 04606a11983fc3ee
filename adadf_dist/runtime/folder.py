"""The run folder: one writer at a time, files whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adadf_dist.errors import TakenError, UserError
from adadf_dist.files import can_write
from adadf_dist.locks import Owner, lock

MARKS = (".lock", "run.json", "checkpoints")
"""A folder with one of these is a run's."""
WRITTEN = ("config.yaml", "metrics.jsonl", "data.json", "status.json", "result.json", "report.html")
"""Files of a run folder that a user may have files of the same name beside."""


def check_own(folder: Path) -> None:
    """Raise `UserError` where a new run would replace files that no run wrote."""
    found = [name for name in WRITTEN if (folder / name).exists()]
    if found and not any((folder / mark).exists() for mark in MARKS):
        files = ", ".join(found)
        raise UserError(f"out: {folder} is no run folder, and a run would replace its {files}; give another --out")


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Make the run folder and keep other runs out of it. Raises `UserError`."""
    check_own(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"out: {folder} cannot be written ({error.strerror}); give another --out") from None
    with file:
        if not lock(file, Owner.PROCESS, "out"):
            raise TakenError(f"out: another run is writing into {folder}; stop it, or give another --out")
        yield


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with can_write(path):
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
