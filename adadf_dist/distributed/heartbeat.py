"""What a rank is doing and since when, and how long its own work takes: what watchdogs and reports look at."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from adadf_dist.console.progress import Display

T = TypeVar("T")

LOADING, EVALUATION = "loading", "evaluation"
"""Kinds of a rank's own work."""


def one(thing: object) -> int:
    return 1


class Activity(NamedTuple):
    """A sign of life."""

    doing: str
    at: float
    """By the monotonic clock, in seconds."""


class Heartbeat:
    """Of one rank. A beat costs a microsecond: give one at each batch and each change of phase."""

    def __init__(self, visible: bool = False) -> None:
        """`visible`: phases show their progress, as those of rank 0 do."""
        self._visible = visible
        self.last = Activity("starting", time.monotonic())
        self._own: dict[str, float] = {}
        self._since = self.last.at

    def beat(self, doing: str) -> None:
        self.last = Activity(doing, time.monotonic())

    def wait_for_disk(self) -> None:
        """Beat for `files.disk_space.retry_on_full_disk`."""
        self.beat("waiting for disk space")

    def wrap(
        self, things: Iterable[T], doing: str, total: int = 0, unit: str = "batches", count: Callable[[T], int] = one
    ) -> Iterator[T]:
        """The things, a beat before each, with a display of how many of `total` units (0: not known) are done.

        `count` gives the units of a thing.
        """
        self.beat(doing)
        with Display(doing, total, unit, self._visible) as display:
            for thing in things:
                yield thing
                self.beat(doing)
                display.update(count(thing))

    @contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Count what happens within as this rank's own work: it must hold no collective, which waits for others."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._own[kind] = self.seconds(kind) + time.monotonic() - began

    def seconds(self, kind: str) -> float:
        """Seconds of own work of a kind since the last `restart`."""
        return self._own.get(kind, 0.0)

    def elapsed(self) -> float:
        """Seconds since the last `restart`."""
        return time.monotonic() - self._since

    def reset(self) -> None:
        """Begin to count anew."""
        self._own.clear()
        self._since = time.monotonic()
