"""The page: a line for each look, with its verdict, as soon as it is known. Rank 0 prints."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import NamedTuple, TypeVar

from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError, one_line

T = TypeVar("T")


class Mark(IntEnum):
    """A verdict; the worst one on the page is the exit status."""

    OK = 0
    WARNING = 1
    ERROR = 2


class Line(NamedTuple):
    name: str
    """What was looked at, in a word or two."""
    text: str
    """What was found."""
    mark: Mark = Mark.OK
    mend: str = ""
    """What to do about it, where something is to be done."""

    def __str__(self) -> str:
        line = f"{self.mark.name.lower():<8} {self.name:<11} {self.text}"
        return f"{line}\n{'':<21}-> {self.mend}" if self.mend else line


class Failed(NamedTuple):
    """A look that a rank could not finish, and why, in a line."""

    reason: str


class Page:
    def __init__(self, printed: bool) -> None:
        """`printed`: on rank 0."""
        self.printed = printed
        self.lines: list[Line] = []
        self.under_way = "start"
        """What is being looked at: where contact is lost, this was it."""

    def measuring(self, name: str, what: str) -> None:
        """Say what takes more than a moment."""
        self.under_way = name
        if self.printed:
            print(f"check: {what} ...", file=sys.stderr, flush=True)

    def add(self, *lines: Line) -> None:
        for line in lines:
            self.lines.append(line)
            if self.printed:
                print(line, flush=True)

    @property
    def worst(self) -> Mark:
        return max((line.mark for line in self.lines), default=Mark.OK)

    def close(self) -> None:
        """The last line: what it all comes to."""
        counts = {mark: sum(line.mark == mark for line in self.lines) for mark in Mark}
        told = [f"{n} {mark.name.lower()}{'s' if n > 1 and mark else ''}" for mark, n in reversed(counts.items()) if n]
        outcome = {
            Mark.OK: "a run can start",
            Mark.WARNING: "a run can start, but see the warnings",
            Mark.ERROR: "a run would not go well: mend the errors first",
        }
        if self.printed:
            print(f"{outcome[self.worst]} ({', '.join(told)})", flush=True)


def on_every_rank(world: World, look: Callable[[], T]) -> list[T | Failed]:
    """What `look` finds on each rank, or why it failed, in rank order, on every rank. A collective.

    `look` itself must hold no collective: where it fails on one rank, the others do not wait for it.
    """
    try:
        found: T | Failed = look()
    except Exception as error:  # a check reports what it meets, whatever it is
        found = Failed(describe_error(error))
    return world.collect(found)


def describe_error(error: BaseException) -> str:
    text = one_line(error, 300)
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def failures(found: Iterable[object], places: Iterable[str]) -> dict[str, list[str]]:
    """Reason -> the places where a look failed for it."""
    reasons: dict[str, list[str]] = {}
    for outcome, place in zip(found, places, strict=True):
        if isinstance(outcome, Failed):
            reasons.setdefault(outcome.reason, []).append(place)
    return reasons
