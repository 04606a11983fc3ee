"""Heartbeat of a rank: its current activity, and the time of its own work, for the watchdog and straggler reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from adadf_dist.console.progress import Display

T = TypeVar("T")

LOADING, EVALUATION = "loading", "evaluation"
"""Kinds of timed work."""


class Activity(NamedTuple):
    """A heartbeat: what the rank was doing, and when."""

    doing: str
    at: float
    """Monotonic clock, in seconds."""


class Heartbeat:
    """Heartbeat of one rank. A beat costs a microsecond: send one for each batch and each new phase."""

    def __init__(self, visible: bool = False) -> None:
        """`visible`: display the progress of phases, as on rank 0."""
        self._visible = visible
        self.last = Activity("starting", time.monotonic())
        self._own: dict[str, float] = {}
        self._since = self.last.at

    def beat(self, doing: str) -> None:
        self.last = Activity(doing, time.monotonic())

    def wait_for_disk(self) -> None:
        """Beat while `files.disk_space.retry_on_full_disk` waits."""
        self.beat("waiting for disk space")

    def wrap(
        self,
        items: Iterable[T],
        doing: str,
        total: int = 0,
        unit: str = "batches",
        count: Callable[[T], int] = lambda item: 1,
    ) -> Iterator[T]:
        """Yield `items` with a beat for each, and display progress towards `total` units (0: unknown).

        `count` returns the number of units of an item.
        """
        self.beat(doing)
        with Display(doing, total, unit, self._visible) as display:
            for item in items:
                yield item
                self.beat(doing)
                display.update(count(item))

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Time the block as this rank's own work. It must not contain a collective, which waits for other ranks."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._own[kind] = self.seconds(kind) + time.monotonic() - began

    def seconds(self, kind: str) -> float:
        """Return the seconds of own work of a kind since the last `reset`."""
        return self._own.get(kind, 0.0)

    def elapsed(self) -> float:
        """Return the seconds since the last `reset`."""
        return time.monotonic() - self._since

    def reset(self) -> None:
        """Restart all timers."""
        self._own.clear()
        self._since = time.monotonic()
