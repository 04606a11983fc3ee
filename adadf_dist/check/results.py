"""The page: a line for each look, with its verdict, as soon as it is known. Rank 0 prints."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import NamedTuple, TypeVar

from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError, single_line

T = TypeVar("T")


class Status(IntEnum):
    """A verdict; the worst one on the page is the exit status."""

    OK = 0
    WARNING = 1
    ERROR = 2


class CheckResult(NamedTuple):
    name: str
    """What was looked at, in a word or two."""
    text: str
    """What was found."""
    mark: Status = Status.OK
    mend: str = ""
    """What to do about it, where something is to be done."""

    def __str__(self) -> str:
        line = f"{self.mark.name.lower():<8} {self.name:<11} {self.text}"
        return f"{line}\n{'':<21}-> {self.mend}" if self.mend else line


class ProbeFailure(NamedTuple):
    """A look that a rank could not finish, and why, in a line."""

    reason: str


class CheckReport:
    def __init__(self, printed: bool) -> None:
        """`printed`: on rank 0."""
        self.printed = printed
        self.lines: list[CheckResult] = []
        self.current = "start"
        """What is being looked at: where contact is lost, this was it."""

    def announce(self, name: str, what: str) -> None:
        """Say what takes more than a moment."""
        self.current = name
        if self.printed:
            print(f"check: {what} ...", file=sys.stderr, flush=True)

    def add(self, *lines: CheckResult) -> None:
        for line in lines:
            self.lines.append(line)
            if self.printed:
                print(line, flush=True)

    @property
    def status(self) -> Status:
        return max((line.mark for line in self.lines), default=Status.OK)

    def close(self) -> None:
        """The last line: what it all comes to."""
        counts = {mark: sum(line.mark == mark for line in self.lines) for mark in Status}
        told = [f"{n} {mark.name.lower()}{'s' if n > 1 and mark else ''}" for mark, n in reversed(counts.items()) if n]
        outcome = {
            Status.OK: "a run can start",
            Status.WARNING: "a run can start, but see the warnings",
            Status.ERROR: "a run would not go well: mend the errors first",
        }
        if self.printed:
            print(f"{outcome[self.status]} ({', '.join(told)})", flush=True)


def gather_probe(world: World, look: Callable[[], T]) -> list[T | ProbeFailure]:
    """What `look` finds on each rank, or why it failed, in rank order, on every rank. A collective.

    `look` itself must hold no collective: where it fails on one rank, the others do not wait for it.
    """
    try:
        found: T | ProbeFailure = look()
    except Exception as error:  # a check reports what it meets, whatever it is
        found = ProbeFailure(describe_error(error))
    return world.all_gather_object(found)


def describe_error(error: BaseException) -> str:
    text = single_line(error, 300)
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def group_failures(found: Iterable[object], places: Iterable[str]) -> dict[str, list[str]]:
    """Reason -> the places where a look failed for it."""
    reasons: dict[str, list[str]] = {}
    for outcome, place in zip(found, places, strict=True):
        if isinstance(outcome, ProbeFailure):
            reasons.setdefault(outcome.reason, []).append(place)
    return reasons
