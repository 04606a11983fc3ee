"""The doctor's report: all findings, and their JSON form."""

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
"""Version of the JSON. Version 1 had `verdicts` with `what`, `where`, `mend` and `remark`, and the severity `note`."""

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
    """The data that was checked and all findings."""

    case: CheckContext
    findings: Sequence[Finding]

    @property
    def worst(self) -> Severity:
        return worst_severity(self.findings)

    def to_json(self) -> str:
        """Return the JSON documented in `shards.doctor`."""
        material, counts = self.case.material, self.case.counts().tolist()
        splits = {
            split: {"faces": sum(row), "class_counts": row} for split, row in zip(material.splits, counts, strict=True)
        }
        content = {
            "format": FORMAT,
            "path": escape_name(str(material.path)),
            "kind": material.kind,
            "source": material.source,
            "classes": material.classes,
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
        """Describe a sample by split, name and class."""
        material, label = self.case.material, int(self.case.looks.label[face])
        return {
            "split": material.splits[material.split_of[face]],
            "name": material.faces.name(face),
            "class": None if label == UNKNOWN else material.classes[label],
        }


def diagnose(material: DatasetView, workers: int) -> Report:
    """Measure and check the data. Raises `UserError` if there is nothing to check."""
    looks = compute_image_stats(material.faces, len(material), workers)
    case = CheckContext(material, looks, find_copies(looks))
    return Report(case, list(chain.from_iterable(check(case) for check in CHECKS)))
