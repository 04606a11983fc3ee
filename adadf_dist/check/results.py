"""Preflight report: one line per check with its status, printed by rank 0 as soon as the check finishes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from adadf_dist.console.logs import get_logger
from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError, single_line
from adadf_dist.findings import Finding, Severity, summarize_severities, worst_severity

logger = get_logger(__name__)

T = TypeVar("T")


class ProbeFailure(NamedTuple):
    """Result of a check that failed on a rank, with a one-line reason."""

    reason: str


class CheckReport:
    def __init__(self, printed: bool) -> None:
        """Start an empty report. `printed`: whether to print it, which is True on rank 0 only."""
        self.printed = printed
        self.findings: list[Finding] = []
        self.current = "start"
        """Name of the check in progress, reported if the connection is lost."""

    def announce(self, name: str, what: str) -> None:
        """Announce a slow check on stderr."""
        self.current = name
        logger.info(f"measuring {what} ...")

    def add(self, *findings: Finding) -> None:
        for finding in findings:
            self.findings.append(finding)
            if self.printed:
                print(format_finding(finding), flush=True)

    @property
    def worst(self) -> Severity:
        return worst_severity(self.findings)

    def close(self) -> None:
        """Print the last line of the report, which says whether the run is ready to train."""
        outcome = (
            "ready to train",
            "ready to train, with warnings",
            "not ready to train: fix the errors above",
        )[self.worst.exit_status]
        if self.printed:
            print(f"{outcome} ({summarize_severities(self.findings)})", flush=True)


def format_finding(finding: Finding) -> str:
    line = f"{finding.severity.word:<8} {finding.name:<11} {finding.message}"
    return f"{line}\n{'':<21}-> {finding.hint}" if finding.hint else line


def gather_probe(world: World, probe: Callable[[], T]) -> list[T | ProbeFailure]:
    """Run `probe` on every rank; return all results in rank order, with a `ProbeFailure` where it failed.

    Collective: every rank must call this. `probe` itself must not call collectives, so that a failure on one rank does
    not block the others.
    """
    try:
        found: T | ProbeFailure = probe()
    except Exception as error:  # a check reports any error
        found = ProbeFailure(describe_error(error))
    return world.all_gather_object(found)


def describe_error(error: BaseException) -> str:
    text = single_line(error, 300)
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def group_failures(found: Iterable[object], ranks: Iterable[str]) -> dict[str, list[str]]:
    """Return the failure reasons in `found`, each with the names of the ranks on which it occurred."""
    reasons: dict[str, list[str]] = {}
    for outcome, rank in zip(found, ranks, strict=True):
        if isinstance(outcome, ProbeFailure):
            reasons.setdefault(outcome.reason, []).append(rank)
    return reasons
