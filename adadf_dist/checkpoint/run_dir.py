"""Run folders: recognize them, and lock them for one writer at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adadf_dist.data.manifest import MANIFEST
from adadf_dist.errors import RunDirLockedError, UserError
from adadf_dist.files.locks import exclusive_lock

MARKERS = (".lock", "checkpoints", "run_info.json", "run.json")
"""Names of files and folders that identify a run folder; any one of them is enough."""
RUN_FILES = (
    "config.yaml",
    "data.json",
    "metrics.jsonl",
    "label_noise.csv",
    "report.html",
    "result.json",
    "status.json",
)
"""Files that a run writes or replaces. If a folder is not a run folder, such files in it belong to the user."""


def check_run_folder(folder: Path) -> None:
    """Raise `UserError` if a run would replace files in a folder that is not a run folder.

    Files with other names, such as launcher logs and notes, are allowed.
    """
    if any((folder / marker).exists() for marker in MARKERS):
        return
    if (folder / MANIFEST).is_file():
        raise UserError(f"out: {folder} is a dataset folder (it contains {MANIFEST}); choose another --out")
    found = [name for name in RUN_FILES if (folder / name).is_file()]
    if found:
        raise UserError(
            f"out: {folder} is not a run folder, and a run would replace its {', '.join(found)}; choose another "
            "--out, or move these files elsewhere"
        )


@contextmanager
def lock_run_dir(folder: Path) -> Iterator[None]:
    """Create the run folder and lock it against other runs. Raises `UserError` if another run has locked it."""
    with exclusive_lock(folder / ".lock", "out") as locked:
        if not locked:
            raise RunDirLockedError(f"out: {folder} is locked by another run; stop that run, or choose another --out")
        yield
