"""Shows the progress of a long job: a progress bar on a terminal, otherwise periodic log lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

from adadf_dist.console.logs import get_logger

logger = get_logger(__name__)

T = TypeVar("T")

_FIRST_LINE_S = 3.0
_LINE_EVERY_S = 10.0


class Progress:
    """Context manager that shows progress toward `total` on stderr, and finally the total count and rate."""

    def __init__(self, what: str, total: int | None, unit: str = "face") -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = 0
        self.started = time.monotonic()
        self.next_line = self.started + _FIRST_LINE_S
        self.bar = (
            tqdm(total=total, desc=what, unit=unit, unit_scale=True, leave=False) if sys.stderr.isatty() else None
        )

    def update(self, count: int) -> None:
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
        elif time.monotonic() > self.next_line:
            self.next_line = time.monotonic() + _LINE_EVERY_S
            self._print_line()

    def _print_line(self) -> None:
        seconds = time.monotonic() - self.started
        of = "" if self.total is None or self.done == self.total else f" of {self.total:,}"
        rate = self.done / max(seconds, 1e-9)
        logger.info(f"{self.what}: {self.done:,}{of} {self.unit}s, {rate:,.0f}/s, {seconds:.1f} s")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.close()
        if kind is None:
            self._print_line()


def track(items: Iterable[T], what: str, total: int | None = None, unit: str = "face") -> Iterator[T]:
    """Yield the items while showing progress."""
    with Progress(what, total, unit) as progress:
        for item in items:
            yield item
            progress.update(1)
