"""Findings that list the affected samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from adadf_dist.findings import Finding


class SampleGroup(NamedTuple):
    """Samples to show together: copies of one image, or a single unusual image."""

    faces: tuple[int, ...]
    """Sample numbers."""
    note: str = ""
    """Remark on this group, such as the image size."""


@dataclass(frozen=True)
class SampleFinding(Finding):
    """A finding that lists the affected samples."""

    sample_groups: tuple[SampleGroup, ...] = ()


def format_finding(finding: Finding) -> str:
    line = f"{finding.severity.word:<8} {finding.name:<14} {finding.message}"
    if finding.location:
        line += f" [{finding.location}]"
    return f"{line}; {finding.hint}" if finding.hint else line
