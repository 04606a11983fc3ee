"""`metrics.jsonl`: a line a record, each once, whatever kills the run or fills the disk."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from adadf_dist.checkpoint.progress import Progress
from adadf_dist.data.build.writer import can_write
from adadf_dist.errors import DiskFullError
from adadf_dist.files.atomic import write_text


class MetricsFile:
    """Appends records. Those for which the disk has no room are held back, and written before the next."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held: list[str] = []

    def append(self, record: Mapping[str, object]) -> None:
        first = not self._held
        self._held.append(json.dumps(record) + "\n")
        try:
            self._write_held()
        except DiskFullError as error:
            if first:
                print(f"warning: {error}; its lines wait in memory, training goes on", file=sys.stderr, flush=True)

    def rewind(self, progress: Progress) -> None:
        """Drop the lines that the checkpoint does not know, and add the epochs that it knows and the file lacks."""
        steps = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # torn by a kill: its step comes again
                continue
            if record["kind"] == "steps" and record["step"] <= progress.step:
                steps.append(record)
        records = sorted([*steps, *progress.epochs], key=lambda r: (r["step"], r["kind"] == "epoch"))
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in records))

    def close(self) -> None:
        """Try once more. What is lost then is told; epochs stand in the checkpoints, and come back from there."""
        try:
            self._write_held()
        except DiskFullError as error:
            print(f"warning: {error}; {len(self._held)} lines are lost", file=sys.stderr, flush=True)

    def _write_held(self) -> None:
        """All of the lines or none."""
        if not self._held:
            return
        before = self.path.stat().st_size if self.path.exists() else 0
        try:
            with can_write(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write("".join(self._held))
        except DiskFullError:
            if self.path.exists():
                os.truncate(self.path, before)
            raise
        self._held.clear()
