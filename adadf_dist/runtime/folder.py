"""The run folder: one writer at a time, files whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adadf_dist.data.manifest import MANIFEST
from adadf_dist.errors import TakenError, UserError
from adadf_dist.files import can_write
from adadf_dist.locks import Owner, lock

RUN_FILES = ("config.yaml", "data.json", "metrics.jsonl", "noise.csv", "report.html", "result.json", "run.json")
"""Files that a run writes, and that may be someone's own where there is no run."""


def check_run_folder(folder: Path) -> None:
    """Raise `UserError` when a run would replace files in a folder in which no run has been.

    Other files are welcome there: logs of launchers, notes.
    """
    if (folder / ".lock").exists() or (folder / "checkpoints").exists():
        return
    found = [name for name in (MANIFEST, *RUN_FILES) if (folder / name).is_file()]
    if MANIFEST in found:
        raise UserError(f"out: {folder} is a dataset folder ({MANIFEST}); give another --out")
    if found:
        raise UserError(
            f"out: {folder} holds {', '.join(found)} but no run, and a run would replace that; give another --out, or "
            "move it away"
        )


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Make the run folder and keep other runs out of it. Raises `UserError`."""
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
