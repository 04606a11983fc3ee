"""Run folders: recognize them, and lock them for one writer at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adadf_dist.data.manifest import MANIFEST
from adadf_dist.errors import RunDirLockedError, UserError
from adadf_dist.files.locks import exclusive_lock

MARKERS = (".lock", "checkpoints", "run_info.json", "run.json")
"""A folder with one of these is a run folder."""
RUN_FILES = (
    "config.yaml",
    "data.json",
    "metrics.jsonl",
    "label_noise.csv",
    "report.html",
    "result.json",
    "status.json",
)
"""Files that a run writes; in other folders they belong to the user."""


def check_run_folder(folder: Path) -> None:
    """Raise `UserError` if a run would replace files in a folder that is not a run folder.

    Other files, such as launcher logs and notes, are allowed.
    """
    if any((folder / marker).exists() for marker in MARKERS):
        return
    if (folder / MANIFEST).is_file():
        raise UserError(f"out: {folder} is a dataset folder ({MANIFEST}); choose another --out")
    found = [name for name in RUN_FILES if (folder / name).is_file()]
    if found:
        raise UserError(
            f"out: {folder} is not a run folder, and a run would replace its {', '.join(found)}; choose another "
            "--out, or move these files"
        )


@contextmanager
def lock_run_dir(folder: Path) -> Iterator[None]:
    """Create the run folder and lock it against other runs. Raises `UserError`."""
    with exclusive_lock(folder / ".lock", "out") as locked:
        if not locked:
            raise RunDirLockedError(f"out: {folder} is locked by another run; stop it, or choose another --out")
        yield
