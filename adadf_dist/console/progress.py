"""Progress display on standard error: a bar on a terminal, a line at intervals in a log file.

Displays only counters kept in host memory, so it never waits for a GPU.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Never

from tqdm import tqdm

from adadf_dist.console.formats import format_duration
from adadf_dist.console.logs import get_logger

logger = get_logger(__name__)

FIRST_LINE_S = 3.0
"""Seconds after which a phase prints its first line to a log file. Shorter phases print none."""
LINE_EVERY_S = 15.0
"""Seconds between consecutive progress lines in a log file."""


class Pace:
    """Timer that decides when to print the next progress line to a log file."""

    def __init__(self) -> None:
        self._next = time.monotonic() + FIRST_LINE_S

    def due(self) -> bool:
        """Return whether a progress line is due; if so, schedule the next one."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + LINE_EVERY_S
        return True


class Display:
    """Context manager that displays the progress of a phase toward `total` units (0: total unknown)."""

    def __init__(self, doing: str, total: int, unit: str, visible: bool) -> None:
        self.doing, self.total, self.unit = doing, total, unit
        self._visible = visible
        self._done = 0
        self._began = time.monotonic()
        self._pace = Pace()
        self._bar: tqdm[Never] | None = None
        if visible and sys.stderr.isatty():
            self._bar = tqdm(total=total or None, desc=doing, unit=f" {unit}", leave=False, dynamic_ncols=True)

    def update(self, count: int) -> None:
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._visible and self._pace.due():
            logger.info(self._line())

    def _line(self) -> str:
        rate = self._done / max(time.monotonic() - self._began, 1e-9)
        if not self.total:
            return f"{self.doing}: {self._done:,} {self.unit}, {rate:,.0f}/s"
        left = max(self.total - self._done, 0) / max(rate, 1e-9)
        return (
            f"{self.doing}: {self._done:,} of {self.total:,} {self.unit}, {rate:,.0f}/s, {format_duration(left)} left"
        )

    def __enter__(self) -> Display:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
