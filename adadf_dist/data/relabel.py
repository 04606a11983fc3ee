"""Decisions about training faces, made by looking at them: another class, out, or as it is.

`relabel.csv` has the columns key, decision, label, old_label; a line is one of

    KEY,relabel,CLASS,OLD    the face is of this class
    KEY,drop,,OLD            the face leaves the training split
    KEY,keep,,OLD            looked at, and nothing is wrong

OLD is the class that the dataset gives the face, so that a file for another dataset with the same keys is noticed. The
column may be missing, and its cells may be empty.

The trainer (`data.relabel`) and the builder (`--relabel`) read it; the audit's gallery writes it.
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
    """The class, of `relabel`; -1 otherwise."""
    line: int
    """Of the file, for people."""
    old_label: int
    """The class that the file expects the dataset to give; -1 where it does not say."""


@dataclass(frozen=True)
class Decisions:
    """A file of decisions, read and checked against the classes."""

    where: str
    """The option and the file, for the error messages."""
    file: str
    """Its name without folders."""
    sha256: str
    by_key: Mapping[str, Decision]

    def error(self, line: int, problem: str) -> UserError:
        return UserError(f"{self.where}: line {line}: {problem}")

    def check_keys(self, train: Collection[str], others: Mapping[str, str]) -> None:
        """Raise `UserError` for a key that is no training face's.

        `others`: the split of every other face, by key.
        """
        for key, decision in self.by_key.items():
            if key in others:
                problem = f"face {key} is of split {others[key]}, and only training faces change; remove the line"
                raise self.error(decision.line, problem)
            if key not in train:
                problem = f"no face has the key {key}; is this file of another dataset? Mend the key or remove the line"
                raise self.error(decision.line, problem)

    def check_labels(self, labels: Mapping[str, int], classes: Sequence[str]) -> None:
        """Raise `UserError` for a sample with another class than the one that it had when it was judged.

        `labels`: the dataset's class of every sample that is decided here, by key. A class that the decision asks for
        is no difference: the decision has been carried out already.
        """
        for key, decision in self.by_key.items():
            if decision.old_label >= 0 and labels[key] not in (decision.old_label, decision.label):
                found, expected = classes[labels[key]], classes[decision.old_label]
                raise self.error(
                    decision.line,
                    f"sample {key} is {found} in this dataset, but was {expected} when it was judged; use the file "
                    f"with the dataset that was audited, or empty the cell {OLD_LABEL}",
                )


class RelabelingStats(NamedTuple):
    """What decisions did to a training split."""

    relabelled: int
    """Faces that have another class now."""
    dropped: int
    passed_over: int
    """Decisions on faces that were carved out of train for validation: these keep their labels."""
    file: str

    def describe(self) -> str:
        told = f"{self.file}: {self.relabelled:,} training faces relabelled, {self.dropped:,} dropped"
        return told + (f", {self.passed_over:,} decisions not used: carved for validation" if self.passed_over else "")


def read_decisions(path: Path, classes: Sequence[str], option: str) -> Decisions:
    """Raises `UserError` naming the option, the file, the line and the fix."""
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
            error.line, f"must be {','.join(COLUMNS)}; export the file from the audit's page again"
        ) from None
    for row, cells in table.records():
        key, kind, name = (cells[column] for column in COLUMNS)
        old_name = cells.get(OLD_LABEL, "")
        label = find_class(name, classes)
        old_label = find_class(old_name, classes) if old_name else -1
        if not key:
            raise decisions.error(row.line, "the key is empty; give the key of a training face or remove the line")
        if kind not in DECISIONS:
            raise decisions.error(row.line, f"decision {kind!r} is none of {', '.join(DECISIONS)}")
        if kind == "relabel" and label is None:
            raise decisions.error(row.line, f"label {name!r} is no class; the classes are {', '.join(classes)}")
        if kind != "relabel" and name:
            raise decisions.error(row.line, f"{kind} takes no label, but {name!r} is given; empty the cell")
        if old_label is None:
            raise decisions.error(
                row.line, f"{OLD_LABEL} {old_name!r} is no class; the classes are {', '.join(classes)}"
            )
        if key in known:
            raise decisions.error(row.line, f"face {key} was decided in line {known[key].line}; keep one of the two")
        known[key] = Decision(kind, label if kind == "relabel" and label is not None else -1, row.line, old_label)
    return decisions


def relabel(split: Split, decisions: Decisions) -> tuple[Split, RelabelingStats]:
    """The training split with the decisions carried out; those on faces that it has not are counted."""
    places = {str(key): place for place, key in enumerate(split.keys)}
    labels = split.labels.copy()
    kept = np.ones(len(split), dtype=bool)
    passed_over = 0
    for key, decision in decisions.by_key.items():
        place = places.get(key)
        if place is None:
            passed_over += 1
        elif decision.kind == "drop":
            kept[place] = False
        elif decision.kind == "relabel":
            labels[place] = decision.label
    changed = int((labels != split.labels)[kept].sum())
    done = RelabelingStats(changed, int((~kept).sum()), passed_over, decisions.file)
    return replace(split, labels=labels).subset(np.flatnonzero(kept), split.name), done
