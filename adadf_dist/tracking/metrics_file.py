"""Write `metrics.jsonl`, one record per line, without duplicates after a crash or missing records after a full disk."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from adadf_dist.checkpoint.progress import TrainingProgress
from adadf_dist.console.logs import get_logger
from adadf_dist.errors import DiskFullError
from adadf_dist.files.atomic import os_errors_as_user_errors, write_text

logger = get_logger(__name__)


class MetricsFile:
    """Appends records to the file. While the disk is full, keeps them in memory and retries with each new record."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pending: list[str] = []

    def append(self, record: Mapping[str, object]) -> None:
        first = not self._pending
        self._pending.append(json.dumps(record) + "\n")
        try:
            self._flush_pending()
        except DiskFullError as error:
            if first:
                logger.warning(f"{error}; buffering metrics in memory")

    def truncate_to(self, progress: TrainingProgress) -> None:
        """Delete records newer than the checkpoint, and add the checkpoint's epoch records that the file lacks."""
        steps = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # truncated by a kill; the step will run again
                continue
            if record["kind"] == "steps" and record["step"] <= progress.step:
                steps.append(record)
        records = sorted([*steps, *progress.epochs], key=lambda r: (r["step"], r["kind"] == "epoch"))
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in records))

    def close(self) -> None:
        """Retry writing the buffered records, or warn that they are lost. Resuming restores the lost epoch records."""
        try:
            self._flush_pending()
        except DiskFullError as error:
            logger.warning(f"{error}; {len(self._pending)} metric records could not be written")

    def _flush_pending(self) -> None:
        """Write all buffered lines, or none of them if the disk is full."""
        if not self._pending:
            return
        before = self.path.stat().st_size if self.path.exists() else 0
        try:
            with os_errors_as_user_errors(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write("".join(self._pending))
        except DiskFullError:
            if self.path.exists():
                os.truncate(self.path, before)
            raise
        self._pending.clear()
