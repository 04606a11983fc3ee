"""Record what a rank is doing and how long its own work takes, for the watchdog and straggler reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from adadf_dist.console.progress import Display

T = TypeVar("T")

LOADING, EVALUATION = "loading", "evaluation"
"""Kinds of work that `Heartbeat.timed` measures."""


class Activity(NamedTuple):
    """A recorded heartbeat: what the rank was doing, and when."""

    doing: str
    at: float
    """Time of the heartbeat on the monotonic clock, in seconds."""


class Heartbeat:
    """Heartbeat and work timers of one rank. Sending a heartbeat takes a microsecond; send one per batch and phase."""

    def __init__(self, visible: bool = False) -> None:
        """Start the timers. `visible`: whether to show progress bars, as on rank 0."""
        self._visible = visible
        self.last = Activity("starting", time.monotonic())
        self._own: dict[str, float] = {}
        self._since = self.last.at

    def beat(self, doing: str) -> None:
        self.last = Activity(doing, time.monotonic())

    def wait_for_disk(self) -> None:
        """Send a heartbeat saying that the rank is waiting for disk space."""
        self.beat("waiting for disk space")

    def wrap(
        self,
        items: Iterable[T],
        doing: str,
        total: int = 0,
        unit: str = "batches",
        count: Callable[[T], int] = lambda item: 1,
    ) -> Iterator[T]:
        """Yield `items`, sending a heartbeat after each one and showing progress.

        `total` is the expected number of units (0 if unknown), and `count` returns the number of units in an item.
        """
        self.beat(doing)
        with Display(doing, total, unit, self._visible) as display:
            for item in items:
                yield item
                self.beat(doing)
                display.update(count(item))

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Measure the block as this rank's own work. The block must not contain a collective."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._own[kind] = self.seconds(kind) + time.monotonic() - began

    def seconds(self, kind: str) -> float:
        """Return how many seconds this rank has spent on this kind of work since the last `reset`."""
        return self._own.get(kind, 0.0)

    def elapsed(self) -> float:
        """Return the number of seconds since the last `reset`."""
        return time.monotonic() - self._since

    def reset(self) -> None:
        """Restart all timers."""
        self._own.clear()
        self._since = time.monotonic()
