"""Seeded label noise for the training split; the true labels are kept."""

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
"""Random stream of label noise, independent of the other uses of the seed."""

Labels = NDArray[np.int64]


class LabelNoise(NamedTuple):
    """Label noise applied to a training split of S samples."""

    given: Labels
    """[S], the noisy labels used in training."""
    true: Labels
    """[S], the dataset's labels."""
    kind: str
    """Human-readable description."""

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
    """Apply the configured noise to the training split; the noise is None if none is configured.

    `others` are keys of the dataset's other samples, which a list may also name. Raises `UserError`.
    """
    if not config.label_noise_rate and not config.label_noise_file:
        return split, None
    if config.label_noise_rate:
        noise = symmetric_noise(split.labels, len(split.classes), config.label_noise_rate, seed)
    else:
        noise = read_noise(split, Path(config.label_noise_file), seed, others)
    return replace(split, labels=noise.given), noise


def symmetric_noise(labels: Labels, num_classes: int, rate: float, seed: int) -> LabelNoise:
    """Give exactly round(rate S) samples, chosen uniformly, another class, chosen uniformly."""
    rng = np.random.default_rng((seed, NOISE))
    chosen = rng.permutation(len(labels))[: round(rate * len(labels))]
    given = labels.copy()
    given[chosen] = (given[chosen] + rng.integers(1, num_classes, len(chosen))) % num_classes
    return LabelNoise(given, labels, f"symmetric noise of {rate:.0%}")


def read_noise(split: Split, path: Path, seed: int, others: Iterable[str] = ()) -> LabelNoise:
    """Noise from a file: a probability matrix or a list of labels, detected by its first line. Raises `UserError`."""
    with open_text(path, OPTION) as lines:
        rows = list(read_list(lines, located(path, OPTION)))
    if not rows:
        raise UserError(f"{OPTION}: {path}: is empty")
    if is_matrix(rows[0].cells, split.classes):
        return noise_from_matrix(split, read_matrix(rows, split.classes), seed)
    return noise_from_list(split, rows, path, others)


def is_matrix(first: Sequence[str], classes: Sequence[str]) -> bool:
    """Whether the first row of a file is the header of a matrix: rows of a list have a name and a label."""
    return len(first) > 2 or (len(first) == 2 and all(find_class(cell, classes) is not None for cell in first))


def read_matrix(rows: Sequence[Row], classes: Sequence[str]) -> NDArray[np.float64]:
    """[C, C], one row per true class that sums to 1, in class order. Raises `UserError`."""
    header, *body = rows
    names = header.cells[-len(classes) :]  # a column of row names is allowed
    order = [label for name in names if (label := find_class(name, classes)) is not None]
    if len(header.cells) > len(classes) + 1 or sorted(order) != [*range(len(classes))]:
        raise UserError(
            f"{header.where} must name the classes {', '.join(classes)}, each once, or be `name label` for a list"
        )
    if len(body) != len(classes):
        raise UserError(
            f"{body[-1].where if body else header.where}: {len(body)} rows of numbers; one per class is needed"
        )
    matrix = np.full((len(classes), len(classes)), np.nan)
    for row, own in zip(body, order, strict=True):
        true_label = own
        if len(row.cells) == len(classes) + 1:
            label = find_class(row.cells[0], classes)
            if label is None and len(header.cells) == len(classes) + 1:
                raise UserError(f"{row.where}: {row.cells[0]!r} is none of the classes {', '.join(classes)}")
            true_label = own if label is None else label
        values = np.array([parse_number(cell) for cell in row.cells[-len(classes) :]])
        usable = len(values) == len(classes) and len(row.cells) <= len(classes) + 1
        if not usable or not np.isfinite(values).all() or (values < 0).any() or not values.sum():
            raise UserError(f"{row.where} must hold {len(classes)} numbers of 0 or more")
        if not np.isnan(matrix[true_label]).all():
            raise UserError(f"{row.where}: a second row for class {classes[true_label]}; one per class is needed")
        matrix[true_label, order] = values / values.sum()
    return matrix


def noise_from_matrix(split: Split, matrix: NDArray[np.float64], seed: int) -> LabelNoise:
    """Sample each label from the row of its true class."""
    steps = matrix.cumsum(axis=1)
    positions = np.random.default_rng((seed, NOISE)).random(len(split))
    given = (positions[:, None] >= steps[split.labels]).sum(axis=1).clip(max=len(matrix) - 1)
    return LabelNoise(given.astype(np.int64), split.labels, "noise from a confusion matrix")


def noise_from_list(split: Split, rows: Sequence[Row], path: Path, others: Iterable[str]) -> LabelNoise:
    """Labels by sample name. Samples missing from the list keep their labels; those of `others` are counted.

    Raises `UserError` for a malformed line and for a name that no sample of the dataset has.
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
                f"{entry.where}: no sample is called {entry.name}; a key of this dataset is {split.keys[0]}. Is the "
                "list of another dataset? Correct the name or remove the line"
            )
        if sample in lines and given[sample] != label:
            raise UserError(f"{entry.where}: {entry.name} has another label in {lines[sample].where}; keep one of them")
        given[sample], lines[sample] = label, entry
    if not lines:
        raise UserError(
            f"{OPTION}: {path}: none of its {len(entries):,} names is a training sample's (the first is "
            f"{entries[0].name if entries else 'missing'}, a training sample here is {split.keys[0]})"
        )
    counted = (
        "" if find_class(entries[0].label, split.classes) is not None else f", numbers from {first_number(entries)}"
    )
    note = f", {unused:,} lines for samples that are not trained on" if unused else ""
    return LabelNoise(given, split.labels, f"labels of {path.name} for {len(lines):,} samples{counted}{note}")


def write_noise(path: Path, split: Split, noise: LabelNoise) -> None:
    """Write `label_noise.csv`: key, true label and given label of every sample whose label was changed."""
    with os_errors_as_user_errors(path), path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("key", "true", "given"))
        for number in noise.changed.tolist():
            true, given = (split.classes[int(labels[number])] for labels in (noise.true, noise.given))
            writer.writerow((split.keys[number], true, given))
