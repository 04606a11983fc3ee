"""Findings reported by the pre-run checks, the run diagnostics and the dataset doctor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum


class Severity(IntEnum):
    """Severity of a finding, from lowest to highest."""

    OK = 0
    INFO = 1
    WARNING = 2
    ERROR = 3

    @property
    def word(self) -> str:
        return self.name.lower()

    @property
    def exit_status(self) -> int:
        """Exit status of a command whose worst finding has this severity: 2 for errors, 1 for warnings, 0 otherwise."""
        return max(0, self - Severity.INFO)

    def count(self, number: int) -> str:
        """Return a count with the name of the severity, such as `1 error`, `3 warnings`, `2 info` or `9 ok`."""
        return f"{number} {self.plural(number)}"

    def plural(self, number: int) -> str:
        return self.word + ("s" if number != 1 and self >= Severity.WARNING else "")


@dataclass(frozen=True)
class Finding:
    """Result of a check: what was checked, how severe the result is, and how to fix it."""

    name: str
    """What was checked, in one or two words."""
    severity: Severity
    message: str
    """What was observed, with numbers."""
    hint: str = ""
    """Suggested fix; empty if none is needed."""
    location: str = ""
    """Part of the run or dataset that the finding concerns, such as a split or class names."""

    @property
    def line(self) -> str:
        """The message, followed by a semicolon and the hint if there is one."""
        return f"{self.message}; {self.hint}" if self.hint else self.message

    @property
    def key(self) -> tuple[str, Severity, str]:
        """Key that identifies the finding, which stays the same when the numbers in its message change."""
        return self.name, self.severity, self.location

    def __str__(self) -> str:
        return f"{self.severity.word}: {self.name}: {self.line}"


def ok(name: str, message: str, location: str = "") -> Finding:
    return Finding(name, Severity.OK, message, location=location)


def warning(name: str, message: str, hint: str) -> Finding:
    return Finding(name, Severity.WARNING, message, hint)


def worst_severity(findings: Iterable[Finding]) -> Severity:
    return max((finding.severity for finding in findings), default=Severity.OK)


def summarize_severities(findings: Iterable[Finding]) -> str:
    """Return the number of findings of each severity as text, such as `1 error, 3 warnings, 2 info, 9 ok`."""
    found = [finding.severity for finding in findings]
    return ", ".join(severity.count(found.count(severity)) for severity in reversed(Severity) if severity in found)
