"""Wrong labels on purpose: seeded noise for the training split, the true labels kept beside it."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adadf_dist.config import DataConfig
from adadf_dist.data.format import Split
from adadf_dist.data.writer import can_write
from adadf_dist.errors import UserError

NOISE = 0x6E6F6973
"""Sets the generator of label noise apart from the others that the seed feeds."""

Labels = NDArray[np.int64]


class LabelNoise(NamedTuple):
    """What was done to the labels of a training split of S faces."""

    given: Labels
    """[S], what training sees."""
    true: Labels
    """[S], what the dataset has."""
    kind: str
    """For people."""

    @property
    def changed(self) -> NDArray[np.intp]:
        """Numbers of the faces whose label is another one now."""
        return np.flatnonzero(self.given != self.true)

    def describe(self) -> str:
        changed, faces = len(self.changed), len(self.true)
        return f"{self.kind}: {changed:,} of {faces:,} training labels changed ({changed / faces:.1%})"


def disturb(split: Split, config: DataConfig, seed: int) -> tuple[Split, LabelNoise | None]:
    """The training split with the noise that the config asks for; None when it asks for none. Raises `UserError`."""
    if not config.label_noise and not config.label_noise_file:
        return split, None
    if config.label_noise:
        noise = symmetric(split.labels, len(split.classes), config.label_noise, seed)
    else:
        noise = read_noise(split, Path(config.label_noise_file), seed)
    return replace(split, labels=noise.given), noise


def symmetric(labels: Labels, num_classes: int, rate: float, seed: int) -> LabelNoise:
    """Exactly round(rate S) faces, drawn evenly, each given one of the other classes, drawn evenly."""
    random = np.random.default_rng((seed, NOISE))
    chosen = random.permutation(len(labels))[: round(rate * len(labels))]
    given = labels.copy()
    given[chosen] = (given[chosen] + random.integers(1, num_classes, len(chosen))) % num_classes
    return LabelNoise(given, labels, f"symmetric noise of {rate:.0%}")


def read_noise(split: Split, path: Path, seed: int) -> LabelNoise:
    """Noise by a file: a matrix of probabilities or a list of labels, as its first line tells. Raises `UserError`."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not text"
        raise UserError(f"data.label_noise_file: {path}: cannot be read ({reason})") from None
    if not lines:
        raise UserError(f"data.label_noise_file: {path}: is empty")
    if "," in lines[0]:
        return by_matrix(split, read_matrix(lines, split.classes, path), seed)
    return by_list(split, lines, path)


def read_matrix(lines: Sequence[str], classes: Sequence[str], path: Path) -> NDArray[np.float64]:
    """[C, C], rows of the true class that sum to 1, in class order. Raises `UserError`."""
    header, *rows = csv.reader(lines)
    names = [name.strip() for name in header]
    names = names[1:] if len(names) == len(classes) + 1 else names  # a column of row names is welcome
    if sorted(names) != sorted(classes):
        raise UserError(f"data.label_noise_file: {path}: line 1 must name the classes {', '.join(classes)}")
    if len(rows) != len(classes):
        raise UserError(f"data.label_noise_file: {path}: {len(rows)} rows of numbers; one a class is needed")
    matrix = np.empty((len(classes), len(classes)))
    order = [names.index(name) for name in classes]
    for number, row in enumerate(rows):
        cells = row[-len(classes) :]
        label = (
            classes.index(row[0].strip())
            if len(row) > len(classes) and row[0].strip() in classes
            else classes.index(names[number])
        )
        try:
            values = np.array([float(cell) for cell in cells])
        except ValueError:
            values = np.array([])
        if len(values) != len(classes) or not np.isfinite(values).all() or (values < 0).any() or not values.sum():
            raise UserError(
                f"data.label_noise_file: {path}: line {number + 2} must hold {len(classes)} numbers of 0 or more"
            )
        matrix[label] = values[order] / values.sum()
    return matrix


def by_matrix(split: Split, matrix: NDArray[np.float64], seed: int) -> LabelNoise:
    """Each face's label drawn from the row of its true class."""
    steps = matrix.cumsum(axis=1)
    places = np.random.default_rng((seed, NOISE)).random(len(split))
    given = (places[:, None] >= steps[split.labels]).sum(axis=1).clip(max=len(matrix) - 1)
    return LabelNoise(given.astype(np.int64), split.labels, "noise by a confusion matrix")


def by_list(split: Split, lines: Sequence[str], path: Path) -> LabelNoise:
    """Labels by name. Faces that the list does not name keep theirs; names of other splits are passed over.

    Raises `UserError` for a line that is none, and when no name is a training face's.
    """
    entries = [parse_line(line, number, path) for number, line in enumerate(lines, start=1)]
    labels = label_numbers([label for _, label in entries], split.classes, path)
    places = find_names(split)
    given = split.labels.copy()
    found = 0
    for (name, _), label in zip(entries, labels, strict=True):
        place = places.get(name)
        if place is not None:
            given[place] = label
            found += 1
    if not found:
        raise UserError(
            f"data.label_noise_file: {path}: none of its {len(entries):,} names is a training face's "
            f"(the first is {entries[0][0]}, a face's key here is {split.keys[0]})"
        )
    return LabelNoise(given, split.labels, f"labels of {path.name} for {found:,} faces")


def parse_line(line: str, number: int, path: Path) -> tuple[str, str]:
    words = line.split()
    if len(words) != 2:
        raise UserError(f"data.label_noise_file: {path}: line {number} is no `name label`: {line.strip()[:60]!r}")
    return bare(words[0]), words[1]


def bare(name: str) -> str:
    """A file's name as keys have it: without folder, extension and `_aligned`."""
    stem = name.rpartition("/")[2].rpartition(".")[0] or name
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem.removesuffix("_aligned"))


def find_names(split: Split) -> Mapping[str, int]:
    """Every name by which a list may mean a face: its key, and the key's last part where that is unique."""
    names: dict[str, int | None] = {}
    for number, key in enumerate(map(str, split.keys)):
        for name in {key.removesuffix("_aligned"), key.rpartition("-")[2].removesuffix("_aligned")}:
            names[name] = None if name in names else number
    return {name: number for name, number in names.items() if number is not None}


def label_numbers(words: Sequence[str], classes: Sequence[str], path: Path) -> list[int]:
    """Class names, or numbers from 1 as RAF-DB counts; numbers from 0 where a 0 stands among them."""
    names = {name: label for label, name in enumerate(classes)}
    if all(word in names for word in words):
        return [names[word] for word in words]
    if not all(word.isdigit() for word in words):
        wrong = next(word for word in words if not word.isdigit() and word not in names)
        raise UserError(f"data.label_noise_file: {path}: label {wrong!r} is neither a number nor a class")
    numbers = [int(word) for word in words]
    first = 0 if 0 in numbers else 1
    if max(numbers) - first >= len(classes):
        raise UserError(
            f"data.label_noise_file: {path}: label {max(numbers)}, but the {len(classes)} classes count "
            f"from {first} to {first + len(classes) - 1}"
        )
    return [number - first for number in numbers]


def write_noise(path: Path, split: Split, noise: LabelNoise) -> None:
    """`noise.csv`: key, true and given class of every face whose label was changed."""
    with can_write(path), path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("key", "true", "given"))
        for number in noise.changed.tolist():
            true, given = (split.classes[int(labels[number])] for labels in (noise.true, noise.given))
            writer.writerow((split.keys[number], true, given))
