"""Result of a check: one printed line, its JSON form, and the samples it is about."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple


class Severity(IntEnum):
    """Severity of a finding; the worst one determines the exit status."""

    OK = 0
    NOTE = 1
    WARNING = 2
    ERROR = 3

    @property
    def word(self) -> str:
        return self.name.lower()

    @property
    def exit_status(self) -> int:
        return max(0, self - Severity.NOTE)


class SampleGroup(NamedTuple):
    """Samples shown together: copies of one image, or a single anomaly."""

    faces: tuple[int, ...]
    remark: str = ""


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    check: str
    """Short name: `leaks`, `sizes`, ..."""
    severity: Severity
    what: str
    """What was found, with its count."""
    where: str = ""
    """Split, class or sample."""
    hint: str = ""
    """Suggested fix; empty if none is needed."""
    exhibits: tuple[SampleGroup, ...] = ()

    def __str__(self) -> str:
        line = f"{self.severity.word:<8} {self.check:<14} {self.what}"
        if self.where:
            line += f" [{self.where}]"
        return f"{line}; {self.hint}" if self.hint else line


def ok(check: str, what: str, where: str = "") -> Finding:
    return Finding(check, Severity.OK, what, where)


def plural(count: int, noun: str) -> str:
    """`1 face`, `2,000 faces`, `3 copies`, `7 classes`."""
    if count != 1:
        noun = noun[:-1] + "ies" if noun.endswith("y") else noun + ("es" if noun.endswith("s") else "s")
    return f"{count:,} {noun}"
