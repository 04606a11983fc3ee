"""How far a phase is, on standard error: a bar on a terminal, a line now and then in a log file.

Only the host's counters are shown, so nothing waits for an accelerator.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Never

from tqdm import tqdm

FIRST_LINE_S = 3.0
"""A log file gets a phase's first line after so long; shorter phases leave none."""
LINE_EVERY_S = 15.0
"""And then a line as often as this."""


class Pace:
    """When the next line is due in a log file."""

    def __init__(self) -> None:
        self._next = time.monotonic() + FIRST_LINE_S

    def due(self) -> bool:
        """Whether a line is due now; if so, the next one is due later."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + LINE_EVERY_S
        return True


class Display:
    """Counts a phase's units towards `total` (0: not known). A context manager."""

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
            print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        rate = self._done / max(time.monotonic() - self._began, 1e-9)
        if not self.total:
            return f"{self.doing}: {self._done:,} {self.unit}, {rate:,.0f}/s"
        left = max(self.total - self._done, 0) / max(rate, 1e-9)
        return f"{self.doing}: {self._done:,} of {self.total:,} {self.unit}, {rate:,.0f}/s, {duration(left)} left"

    def __enter__(self) -> Display:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()


def duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}h{m:02d}m" if hours else f"{m}m{s:02d}s"
