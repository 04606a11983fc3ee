"""The run folder: which folder is one, and one writer at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adadf_dist.data.manifest import MANIFEST
from adadf_dist.errors import RunDirLockedError, UserError
from adadf_dist.files.locks import Owner, lock

MARKS = (".lock", "checkpoints", "run.json")
"""A folder with one of these is a run's."""
RUN_FILES = ("config.yaml", "data.json", "metrics.jsonl", "noise.csv", "report.html", "result.json", "status.json")
"""Files that a run writes, and that may be a user's own where there is no run."""


def check_run_folder(folder: Path) -> None:
    """Raise `UserError` when a run would replace files in a folder that is not a run's.

    Other files are welcome there: logs of launchers, notes.
    """
    if any((folder / mark).exists() for mark in MARKS):
        return
    if (folder / MANIFEST).is_file():
        raise UserError(f"out: {folder} is a dataset folder ({MANIFEST}); give another --out")
    found = [name for name in RUN_FILES if (folder / name).is_file()]
    if found:
        raise UserError(
            f"out: {folder} is no run folder, and a run would replace its {', '.join(found)}; give another --out, or "
            "move what is there"
        )


@contextmanager
def lock_run_dir(folder: Path) -> Iterator[None]:
    """Make the run folder and keep other runs out of it. Raises `UserError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"out: {folder} cannot be written ({error.strerror}); give another --out") from None
    with file:
        if not lock(file, Owner.PROCESS, "out"):
            raise RunDirLockedError(f"out: another run is writing into {folder}; stop it, or give another --out")
        yield
