"""Add seeded label noise to the training split, keeping the true labels separately."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adadf_dist.config.schema import DataConfig
from adadf_dist.data.build.label_list import (
    Entry,
    NameIndex,
    first_number,
    is_header,
    label_numbers,
    left_out,
    read_entry,
)
from adadf_dist.data.dataset import Split
from adadf_dist.errors import UserError
from adadf_dist.files.atomic import os_errors_as_user_errors
from adadf_dist.files.csv_tables import Row, find_class, parse_number, read_list
from adadf_dist.files.text import located, open_text

OPTION = "data.label_noise_file"
NOISE = 0x6E6F6973
"""Key that makes the random stream of label noise independent of other streams with the same seed."""

Labels = NDArray[np.int64]


class LabelNoise(NamedTuple):
    """Label noise applied to a training split of S samples."""

    given: Labels
    """[S], the noisy labels used in training."""
    true: Labels
    """[S], the dataset's labels."""
    kind: str
    """Human-readable description of the noise."""

    @property
    def changed(self) -> NDArray[np.intp]:
        """Indices of the samples whose label was changed."""
        return np.flatnonzero(self.given != self.true)

    def describe(self) -> str:
        changed, total = len(self.changed), len(self.true)
        return f"{self.kind}: {changed:,} of {total:,} training labels changed ({changed / total:.1%})"


def apply_label_noise(
    split: Split, config: DataConfig, seed: int, others: Iterable[str] = ()
) -> tuple[Split, LabelNoise | None]:
    """Return the training split with the configured label noise applied, and the noise (None if none is configured).

    `others` are the keys of the dataset's samples outside `split`, which a list of labels may also name. Raises
    `UserError`.
    """
    if not config.label_noise_rate and not config.label_noise_file:
        return split, None
    if config.label_noise_rate:
        noise = symmetric_noise(split.labels, len(split.classes), config.label_noise_rate, seed)
    else:
        noise = read_noise(split, Path(config.label_noise_file), seed, others)
    return replace(split, labels=noise.given), noise


def symmetric_noise(labels: Labels, num_classes: int, rate: float, seed: int) -> LabelNoise:
    """Change the labels of exactly round(rate * S) random samples, each to a random other class."""
    rng = np.random.default_rng((seed, NOISE))
    chosen = rng.permutation(len(labels))[: round(rate * len(labels))]
    given = labels.copy()
    given[chosen] = (given[chosen] + rng.integers(1, num_classes, len(chosen))) % num_classes
    return LabelNoise(given, labels, f"symmetric noise of {rate:.0%}")


def read_noise(split: Split, path: Path, seed: int, others: Iterable[str] = ()) -> LabelNoise:
    """Read label noise from a file, whose first line shows whether it is a matrix of probabilities or a list of labels.

    Raises `UserError`.
    """
    with open_text(path, OPTION) as lines:
        rows = list(read_list(lines, located(path, OPTION)))
    if not rows:
        raise UserError(f"{OPTION}: {path} is empty")
    if is_matrix(rows[0].cells, split.classes):
        return noise_from_matrix(split, read_matrix(rows, split.classes), seed)
    return noise_from_list(split, rows, path, others)


def is_matrix(first: Sequence[str], classes: Sequence[str]) -> bool:
    """Return whether a file's first row is the header of a matrix rather than a line of a list (a name and a label)."""
    return len(first) > 2 or (len(first) == 2 and all(find_class(cell, classes) is not None for cell in first))


def read_matrix(rows: Sequence[Row], classes: Sequence[str]) -> NDArray[np.float64]:
    """Return a matrix [C, C] in class order; each row has the label probabilities of one true class.

    Raises `UserError`.
    """
    header, *body = rows
    names = header.cells[-len(classes) :]  # a column of row names is allowed
    order = [label for name in names if (label := find_class(name, classes)) is not None]
    if len(header.cells) > len(classes) + 1 or sorted(order) != [*range(len(classes))]:
        raise UserError(
            f"{header.where} must be either the header of a matrix, which names each of the classes "
            f"{', '.join(classes)} once, or a line of a list: a name and a label"
        )
    if len(body) != len(classes):
        raise UserError(
            f"{body[-1].where if body else header.where}: expected {len(classes)} rows of numbers, one per class, "
            f"but found {len(body)}"
        )
    matrix = np.full((len(classes), len(classes)), np.nan)
    for row, own in zip(body, order, strict=True):
        true_label = own
        if len(row.cells) == len(classes) + 1:
            label = find_class(row.cells[0], classes)
            if label is None and len(header.cells) == len(classes) + 1:
                raise UserError(f"{row.where}: {row.cells[0]!r} is not a class; the classes are {', '.join(classes)}")
            true_label = own if label is None else label
        values = np.array([parse_number(cell) for cell in row.cells[-len(classes) :]])
        usable = len(values) == len(classes) and len(row.cells) <= len(classes) + 1
        if not usable or not np.isfinite(values).all() or (values < 0).any() or not values.sum():
            raise UserError(f"{row.where} must contain {len(classes)} nonnegative numbers, not all 0")
        if not np.isnan(matrix[true_label]).all():
            raise UserError(
                f"{row.where}: second row for class {classes[true_label]}; each class must have exactly one"
            )
        matrix[true_label, order] = values / values.sum()
    return matrix


def noise_from_matrix(split: Split, matrix: NDArray[np.float64], seed: int) -> LabelNoise:
    """Sample each training label from the matrix row of its true class."""
    steps = matrix.cumsum(axis=1)
    positions = np.random.default_rng((seed, NOISE)).random(len(split))
    given = (positions[:, None] >= steps[split.labels]).sum(axis=1).clip(max=len(matrix) - 1)
    return LabelNoise(given.astype(np.int64), split.labels, "noise from a confusion matrix")


def noise_from_list(split: Split, rows: Sequence[Row], path: Path, others: Iterable[str]) -> LabelNoise:
    """Take labels from a list of sample names and labels. Samples that are not listed keep their labels.

    Lines that name samples in `others` have no effect; only their number is reported. Raises `UserError` for a
    malformed line and for a name that no sample of the dataset has.
    """
    entries = [read_entry(row) for row in rows if not is_header(row, rows[0], split.classes)]
    labels = label_numbers(entries, split.classes)
    train, known = NameIndex(split.keys.tolist()), NameIndex([*others, *left_out(split.folder)])
    given, lines, unused = split.labels.copy(), dict[int, Entry](), 0
    for entry, label in zip(entries, labels, strict=True):
        sample = train.find(entry)
        if sample is None:
            unused += 1
            if known.find(entry) is not None:
                continue
            raise UserError(
                f"{entry.where}: no sample is named {entry.name} (this dataset's keys look like {split.keys[0]}); "
                "is the list for another dataset? Correct the name or remove the line"
            )
        if sample in lines and given[sample] != label:
            raise UserError(
                f"{entry.where}: {entry.name} has a different label in {lines[sample].where}; keep only one"
            )
        given[sample], lines[sample] = label, entry
    if not lines:
        raise UserError(
            f"{OPTION}: {path}: none of its {len(entries):,} names matches a training sample (the first is "
            f"{entries[0].name if entries else 'missing'}; this dataset's keys look like {split.keys[0]})"
        )
    counted = (
        "" if find_class(entries[0].label, split.classes) is not None else f", numbered from {first_number(entries)}"
    )
    note = f", {unused:,} lines for samples outside the training split" if unused else ""
    return LabelNoise(given, split.labels, f"labels from {path.name} for {len(lines):,} samples{counted}{note}")


def write_noise(path: Path, split: Split, noise: LabelNoise) -> None:
    """Write `label_noise.csv`: the key, true label and given label of each sample whose label was changed."""
    with os_errors_as_user_errors(path), path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("key", "true", "given"))
        for number in noise.changed.tolist():
            true, given = (split.classes[int(labels[number])] for labels in (noise.true, noise.given))
            writer.writerow((split.keys[number], true, given))
