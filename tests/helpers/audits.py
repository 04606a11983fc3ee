"""What the tests of the audit share: copies of a run, and the table of an audit."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path


def read_table(audit_folder: Path) -> list[dict[str, str]]:
    with (audit_folder / "audit.csv").open() as stream:
        return list(csv.DictReader(stream))


def copy_run(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("audit", "tensorboard")))
