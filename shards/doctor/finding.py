"""Findings about samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from adadf_dist.findings import Finding


class SampleGroup(NamedTuple):
    """Samples shown together: copies of one image, or a single anomaly."""

    faces: tuple[int, ...]
    note: str = ""


@dataclass(frozen=True)
class SampleFinding(Finding):
    """A finding with the samples that it is about."""

    sample_groups: tuple[SampleGroup, ...] = ()


def format_finding(finding: Finding) -> str:
    line = f"{finding.severity.word:<8} {finding.name:<14} {finding.message}"
    if finding.location:
        line += f" [{finding.location}]"
    return f"{line}; {finding.hint}" if finding.hint else line
