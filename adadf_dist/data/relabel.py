"""Manual decisions on training samples: relabel, drop or keep.

`relabel.csv` has the columns key, decision, label and old_label. Each line has one of these forms:

    KEY,relabel,CLASS,OLD    set the label to CLASS
    KEY,drop,,OLD            remove the sample from the training split
    KEY,keep,,OLD            reviewed and correct

OLD is the class that the sample had when it was reviewed, which reveals a file made for another dataset with the same
keys. The column is optional, and its cells may be empty.

The trainer (`data.relabel_file`) and the builder (`--relabel`) read the file; the audit's page exports it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adadf_dist.data.dataset import Split
from adadf_dist.errors import UserError
from adadf_dist.files.csv_tables import NoColumnError, find_class, open_table
from adadf_dist.files.text import decode_lines, escape_name, located, open_bytes

COLUMNS = ("key", "decision", "label")
OLD_LABEL = "old_label"
DECISIONS = ("relabel", "drop", "keep")


class Decision(NamedTuple):
    kind: str
    """One of `DECISIONS`."""
    label: int
    """New class if `kind` is `relabel`; -1 otherwise."""
    line: int
    """Line number in the file, for messages."""
    old_label: int
    """Class that the sample had when it was reviewed; -1 if the file does not state it."""


@dataclass(frozen=True)
class Decisions:
    """The decisions in a file; their labels are valid classes of the dataset."""

    where: str
    """Option and file, named at the start of each error message."""
    file: str
    """File name without folders."""
    sha256: str
    by_key: Mapping[str, Decision]

    def error(self, line: int, problem: str) -> UserError:
        return UserError(f"{self.where}: line {line}: {problem}")

    def check_keys(self, train: Collection[str], others: Mapping[str, str]) -> None:
        """Raise `UserError` if the key of a decision does not belong to a training sample.

        `others` maps the keys of all other samples to their splits.
        """
        for key, decision in self.by_key.items():
            if key in others:
                problem = (
                    f"sample {key} is in split {others[key]}; only training samples can be changed; remove the line"
                )
                raise self.error(decision.line, problem)
            if key not in train:
                problem = f"unknown sample key {key} (is the file for another dataset?); fix or remove the line"
                raise self.error(decision.line, problem)

    def check_labels(self, labels: Mapping[str, int], classes: Sequence[str]) -> None:
        """Raise `UserError` if a sample's class has changed since it was reviewed.

        `labels` maps the key of every sample with a decision to its class in the dataset. If that is already the
        decision's new class, the decision has been applied before, and the sample is accepted.
        """
        for key, decision in self.by_key.items():
            if decision.old_label >= 0 and labels[key] not in (decision.old_label, decision.label):
                found, expected = classes[labels[key]], classes[decision.old_label]
                raise self.error(
                    decision.line,
                    f"sample {key} is {found} in this dataset, but was {expected} when it was reviewed; use the file "
                    f"with the dataset that was audited, or clear its {OLD_LABEL} cell",
                )


class RelabelingStats(NamedTuple):
    """Effect of the decisions on a training split."""

    relabeled: int
    """Samples whose label changed."""
    dropped: int
    unused: int
    """Decisions without effect, because their samples are held out of the training split for validation."""
    file: str

    def describe(self) -> str:
        text = f"{self.file}: {self.relabeled:,} training samples relabeled, {self.dropped:,} dropped"
        return text + (
            f", {self.unused:,} decisions unused because their samples are held out for validation"
            if self.unused
            else ""
        )


def read_decisions(path: Path, classes: Sequence[str], option: str) -> Decisions:
    """Read a file of relabeling decisions.

    If the file is invalid, raises `UserError` naming the option, file and line, and how to fix the problem.
    """
    where = located(path, option)
    with open_bytes(path, option) as stream:
        content = stream.read()
    known: dict[str, Decision] = {}
    decisions = Decisions(where, escape_name(path.name), hashlib.sha256(content).hexdigest(), known)
    lines = decode_lines(io.BytesIO(content), where)
    try:
        table = open_table(lines, where, COLUMNS, (OLD_LABEL,))
    except NoColumnError as error:
        raise decisions.error(
            error.line,
            f"must be a header with the columns {', '.join(COLUMNS)}; export the file from the audit's page again",
        ) from None
    for row, cells in table.records():
        key, kind, name = (cells[column] for column in COLUMNS)
        old_name = cells.get(OLD_LABEL, "")
        label = find_class(name, classes)
        old_label = find_class(old_name, classes) if old_name else -1
        if not key:
            raise decisions.error(row.line, "empty key; enter the key of a training sample or remove the line")
        if kind not in DECISIONS:
            raise decisions.error(row.line, f"decision {kind!r} must be one of {', '.join(DECISIONS)}")
        if kind == "relabel" and label is None:
            raise decisions.error(row.line, f"label {name!r} is not a class; the classes are {', '.join(classes)}")
        if kind != "relabel" and name:
            raise decisions.error(row.line, f"decision {kind} takes no label, got {name!r}; clear the label cell")
        if old_label is None:
            raise decisions.error(
                row.line, f"{OLD_LABEL} {old_name!r} is not a class; the classes are {', '.join(classes)}"
            )
        if key in known:
            raise decisions.error(row.line, f"sample {key} is already in line {known[key].line}; remove one of the two")
        known[key] = Decision(kind, label if kind == "relabel" and label is not None else -1, row.line, old_label)
    return decisions


def relabel(split: Split, decisions: Decisions) -> tuple[Split, RelabelingStats]:
    """Return the training split with the decisions applied, and statistics of their effect."""
    indices = {str(key): index for index, key in enumerate(split.keys)}
    labels = split.labels.copy()
    is_kept = np.ones(len(split), dtype=bool)
    unused = 0
    for key, decision in decisions.by_key.items():
        index = indices.get(key)
        if index is None:
            unused += 1
        elif decision.kind == "drop":
            is_kept[index] = False
        elif decision.kind == "relabel":
            labels[index] = decision.label
    changed = int((labels != split.labels)[is_kept].sum())
    stats = RelabelingStats(changed, int((~is_kept).sum()), unused, decisions.file)
    return replace(split, labels=labels).subset(np.flatnonzero(is_kept), split.name), stats
