"""The report: one line per check with its status, printed by rank 0 as soon as it is known."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import NamedTuple, TypeVar

from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError, single_line

T = TypeVar("T")


class Status(IntEnum):
    """Status of a check. The worst one is the exit status."""

    OK = 0
    WARNING = 1
    ERROR = 2


class CheckResult(NamedTuple):
    name: str
    """What was checked, in one or two words."""
    text: str
    """The finding."""
    mark: Status = Status.OK
    hint: str = ""
    """Suggested fix; empty if none is needed."""

    def __str__(self) -> str:
        line = f"{self.mark.name.lower():<8} {self.name:<11} {self.text}"
        return f"{line}\n{'':<21}-> {self.hint}" if self.hint else line


class ProbeFailure(NamedTuple):
    """A check that failed on a rank, with a one-line reason."""

    reason: str


class CheckReport:
    def __init__(self, printed: bool) -> None:
        """`printed`: on rank 0."""
        self.printed = printed
        self.lines: list[CheckResult] = []
        self.current = "start"
        """Name of the check in progress, reported if the connection is lost."""

    def announce(self, name: str, what: str) -> None:
        """Announce a slow check on stderr."""
        self.current = name
        if self.printed:
            print(f"measuring {what} ...", file=sys.stderr, flush=True)

    def add(self, *lines: CheckResult) -> None:
        for line in lines:
            self.lines.append(line)
            if self.printed:
                print(line, flush=True)

    @property
    def status(self) -> Status:
        return max((line.mark for line in self.lines), default=Status.OK)

    def close(self) -> None:
        """Print the summary line."""
        counts = {mark: sum(line.mark == mark for line in self.lines) for mark in Status}
        text = [f"{n} {mark.name.lower()}{'s' if n > 1 and mark else ''}" for mark, n in reversed(counts.items()) if n]
        outcome = {
            Status.OK: "ready to train",
            Status.WARNING: "ready to train, with warnings",
            Status.ERROR: "not ready to train: fix the errors above",
        }
        if self.printed:
            print(f"{outcome[self.status]} ({', '.join(text)})", flush=True)


def gather_probe(world: World, look: Callable[[], T]) -> list[T | ProbeFailure]:
    """Return the result of `look` on each rank, or why it failed, in rank order. Collective: every rank must call this.

    `look` itself must not call collectives, so that a failure on one rank does not block the others.
    """
    try:
        found: T | ProbeFailure = look()
    except Exception as error:  # a check reports any error
        found = ProbeFailure(describe_error(error))
    return world.all_gather_object(found)


def describe_error(error: BaseException) -> str:
    text = single_line(error, 300)
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def group_failures(found: Iterable[object], places: Iterable[str]) -> dict[str, list[str]]:
    """Group failures: reason -> the ranks on which a check failed for it."""
    reasons: dict[str, list[str]] = {}
    for outcome, place in zip(found, places, strict=True):
        if isinstance(outcome, ProbeFailure):
            reasons.setdefault(outcome.reason, []).append(place)
    return reasons
