"""Read lists of labels with one `name label` line per sample, as published with papers on label noise."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from adadf_dist.errors import UserError
from adadf_dist.files.csv_tables import Row, find_class, open_table, parse_whole
from adadf_dist.files.text import open_text

HEADERS = ("label", "labels", "class", "emotion", "expression", "target")
"""Accepted header names of a list's second column."""


class Entry(NamedTuple):
    """One line of a label list."""

    where: str
    name: str
    """Sample name, as written in the file."""
    label: str


class NameIndex:
    """Finds samples by any form of their name that a list may use."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys
        self.by_key: dict[str, int] = {}
        self.by_ending: dict[str, int] = {}
        """Part of a key after any `-` -> sample, or -1 if ambiguous. Lists may give only the end of a path."""
        for number, key in enumerate(map(without_suffix, keys)):
            self.by_key[key] = number
            parts = key.split("-")
            for first in range(1, len(parts)):
                ending = "-".join(parts[first:])
                self.by_ending[ending] = -1 if ending in self.by_ending else number

    def find(self, entry: Entry) -> int | None:
        """Return the sample named by a path or file name; None if unknown. Raises `UserError` if ambiguous."""
        names = list(name_forms(entry.name))
        for table in (self.by_key, self.by_ending):
            for name in names:
                sample = table.get(name)
                if sample == -1:
                    same = [key for key in self.keys if without_suffix(key).endswith(f"-{name}")]
                    raise UserError(
                        f"{entry.where}: {entry.name} is ambiguous ({', '.join(same[:3])}); give its "
                        "path relative to the image root"
                    )
                if sample is not None:
                    return sample
        return None


def name_forms(name: str) -> Iterator[str]:
    """Yield the keys that a listed name may stand for, dropping its leading folders one by one.

    First assumes that the name ends in a file extension, then that it contains a dot but no extension.
    """
    for text in (name, f"{name}."):
        parts = [without_suffix(part) for part in key_form(text).split("/") if part not in ("", ".")]
        for first in range(len(parts)):
            yield "-".join(parts[first:])


def read_entry(row: Row) -> Entry:
    """Parse a `name label` row. Raises `UserError` if it does not have two nonempty cells."""
    if len(row.cells) != 2 or not all(row.cells):
        raise UserError(f"{row.where} must be `name label`, but is {' '.join(row.cells)[:60]!r}")
    return Entry(row.where, *row.cells)


def is_header(row: Row, first: Row, classes: Sequence[str]) -> bool:
    """Return whether a row is the header of a list, such as `name,label`."""
    words = [cell.casefold() for cell in row.cells]
    return row is first and len(words) == 2 and words[1] in HEADERS and find_class(row.cells[1], classes) is None


def key_form(name: str) -> str:
    """Convert a file path to the form used in keys (no extension, plain characters only), but keep each `/`."""
    path = name.replace("\\", "/")
    folders, slash, file = path.rpartition("/")
    return re.sub(r"[^A-Za-z0-9_/-]+", "-", folders + slash + (file.rpartition(".")[0] or file))


def without_suffix(name: str) -> str:
    """Remove the `_aligned` that RAF-DB appends to aligned images."""
    return name.strip("-").removesuffix("_aligned")


def left_out(folder: Path) -> Iterator[str]:
    """Yield the recorded keys of samples that the builder dropped, because published lists may name them."""
    for file in ("leaks.csv", "skipped_images.csv"):
        if (folder / file).is_file():
            with open_text(folder / file) as lines:
                for _, (source,) in open_table(lines, str(folder / file), ("source",)).select(("source",)):
                    yield key_form(source).replace("/", "-")


def label_numbers(entries: Sequence[Entry], classes: Sequence[str]) -> list[int]:
    """Return class indices for labels that are class names or numbers. Numbers start at 0 if any is 0, otherwise at 1.

    Raises `UserError` for a label that is not a class.
    """
    named = [find_class(entry.label, classes) for entry in entries]
    if all(label is not None for label in named):
        return [label for label in named if label is not None]
    numbers = [parse_whole(entry.label) for entry in entries]
    for entry, label, number in zip(entries, named, numbers, strict=True):
        if number is None:
            problem = (
                "is a class, but other lines have numbers" if label is not None else "is neither a number nor a class"
            )
            raise UserError(f"{entry.where}: label {entry.label!r} {problem}; the classes are {', '.join(classes)}")
    first = first_number(entries)
    for entry, number in zip(entries, numbers, strict=True):
        assert number is not None
        if not first <= number < first + len(classes):
            raise UserError(
                f"{entry.where}: label {number} is out of range; the {len(classes)} classes are numbered {first} to "
                f"{first + len(classes) - 1}"
            )
    return [number - first for number in numbers if number is not None]


def first_number(entries: Sequence[Entry]) -> int:
    """Return the number of the first class: 0 if any label is 0, else 1."""
    return 0 if any(parse_whole(entry.label) == 0 for entry in entries) else 1
