"""Runs all checks, and returns their findings as a report or as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from adadf_dist.files.text import escape_name
from adadf_dist.findings import Finding, Severity, worst_severity
from shards.doctor.checks import (
    CheckContext,
    check_balance,
    check_blank,
    check_build_stats,
    check_color,
    check_files,
    check_sizes,
    check_splits,
)
from shards.doctor.dataset_view import UNKNOWN, DatasetView
from shards.doctor.duplicate_checks import check_conflicts, check_duplicates, check_leaks
from shards.doctor.duplicates import find_copies
from shards.doctor.finding import SampleFinding
from shards.doctor.image_stats import compute_image_stats
from shards.doctor.release_checks import check_class_order, check_counts, check_identity

FORMAT = 2
"""Version of the JSON format.

Version 1 had `verdicts` with `what`, `where`, `mend` and `remark`, and the severity `note`.
"""

CHECKS: tuple[Callable[[CheckContext], Iterator[Finding]], ...] = (
    check_identity,
    check_counts,
    check_class_order,
    check_splits,
    check_balance,
    check_leaks,
    check_conflicts,
    check_duplicates,
    check_files,
    check_blank,
    check_sizes,
    check_color,
    check_build_stats,
)


@dataclass(frozen=True, eq=False)
class Report:
    """The data that was checked, and all findings."""

    context: CheckContext
    findings: Sequence[Finding]

    @property
    def worst(self) -> Severity:
        return worst_severity(self.findings)

    def to_json(self) -> str:
        """Return the report as JSON, in the format documented in `shards/doctor/__main__.py`."""
        view, counts = self.context.view, self.context.counts().tolist()
        splits = {
            split: {"faces": sum(row), "class_counts": row} for split, row in zip(view.splits, counts, strict=True)
        }
        content = {
            "format": FORMAT,
            "path": escape_name(str(view.path)),
            "kind": view.kind,
            "source": view.source,
            "classes": view.classes,
            "splits": splits,
            "worst": self.worst.word,
            "exit_status": self.worst.exit_status,
            "findings": [self._finding(finding) for finding in self.findings],
        }
        return json.dumps(content, indent=1) + "\n"

    def _finding(self, finding: Finding) -> dict[str, object]:
        groups = finding.sample_groups if isinstance(finding, SampleFinding) else ()
        return {
            "check": finding.name,
            "severity": finding.severity.word,
            "message": finding.message,
            "location": finding.location,
            "hint": finding.hint,
            "groups": [
                {"faces": [self.describe(face) for face in group.faces], "note": group.note} for group in groups
            ],
        }

    def describe(self, face: int) -> dict[str, str | None]:
        """Return the split, name and class of a sample; the class is None if the image is unreadable."""
        view, label = self.context.view, int(self.context.image_stats.label[face])
        return {
            "split": view.splits[view.split_of[face]],
            "name": view.faces.name(face),
            "class": None if label == UNKNOWN else view.classes[label],
        }


def diagnose(view: DatasetView, workers: int) -> Report:
    """Measure all images, run all checks and return the report."""
    image_stats = compute_image_stats(view.faces, len(view), workers)
    context = CheckContext(view, image_stats, find_copies(image_stats))
    return Report(context, list(chain.from_iterable(check(context) for check in CHECKS)))
