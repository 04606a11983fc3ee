"""Lists of labels by sample name: `name label` lines, as papers on label noise publish them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from adadf_dist.errors import UserError
from adadf_dist.files.csv_tables import Row, find_class, open_table, parse_whole
from adadf_dist.files.text import open_text

HEADERS = ("label", "labels", "class", "emotion", "expression", "target")
"""What the second column of a list may be called in its header."""


class Entry(NamedTuple):
    """A line of a list of labels."""

    where: str
    name: str
    """As the file has it."""
    label: str


class NameIndex:
    """Samples by every name under which a list may mention them."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = keys
        self.by_key: dict[str, int] = {}
        self.by_ending: dict[str, int] = {}
        """What keys end in, from a `-` on: a key is a path, and lists may know the file alone. -1: several do."""
        for number, key in enumerate(map(without_suffix, keys)):
            self.by_key[key] = number
            parts = key.split("-")
            for first in range(1, len(parts)):
                ending = "-".join(parts[first:])
                self.by_ending[ending] = -1 if ending in self.by_ending else number

    def find(self, entry: Entry) -> int | None:
        """The sample that a line means: its path as keys have it, or its file name alone. Raises `UserError`."""
        names = list(name_forms(entry.name))
        for table in (self.by_key, self.by_ending):
            for name in names:
                sample = table.get(name)
                if sample == -1:
                    same = [key for key in self.keys if without_suffix(key).endswith(f"-{name}")]
                    raise UserError(
                        f"{entry.where}: {entry.name} may be {' or '.join(same[:3])}; give the path below "
                        "the root of the images"
                    )
                if sample is not None:
                    return sample
        return None


def name_forms(name: str) -> Iterator[str]:
    """What a key may be or end in for a name of a list, the longest first: without its first folders, one by one.

    With an extension; then as a name that has a dot and no extension.
    """
    for text in (name, f"{name}."):
        parts = [without_suffix(part) for part in key_form(text).split("/") if part not in ("", ".")]
        for first in range(len(parts)):
            yield "-".join(parts[first:])


def read_entry(row: Row) -> Entry:
    """Raises `UserError`."""
    if len(row.cells) != 2 or not all(row.cells):
        raise UserError(f"{row.where} is no `name label`: {' '.join(row.cells)[:60]!r}")
    return Entry(row.where, *row.cells)


def is_header(row: Row, first: Row, classes: Sequence[str]) -> bool:
    """Whether a row is a list's header, like `name,label`."""
    words = [cell.casefold() for cell in row.cells]
    return row is first and len(words) == 2 and words[1] in HEADERS and find_class(row.cells[1], classes) is None


def key_form(name: str) -> str:
    """A file's path as keys have it, folder by folder: without the extension, in plain characters."""
    path = name.replace("\\", "/")
    folders, slash, file = path.rpartition("/")
    return re.sub(r"[^A-Za-z0-9_/-]+", "-", folders + slash + (file.rpartition(".")[0] or file))


def without_suffix(name: str) -> str:
    """A name without the `_aligned` that RAF-DB's aligned images have."""
    return name.strip("-").removesuffix("_aligned")


def left_out(folder: Path) -> Iterator[str]:
    """Keys of the samples that the builder dropped, where its lists are available: published lists name them too."""
    for file in ("leaks.csv", "quarantine.csv"):
        if (folder / file).is_file():
            with open_text(folder / file) as lines:
                for _, (source,) in open_table(lines, str(folder / file), ("source",)).select(("source",)):
                    yield key_form(source).replace("/", "-")


def label_numbers(entries: Sequence[Entry], classes: Sequence[str]) -> list[int]:
    """Class names, or numbers from 1 as RAF-DB counts; numbers from 0 where a 0 is among them. Raises `UserError`."""
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
                f"{entry.where}: label {number}, but the {len(classes)} classes count from {first} to "
                f"{first + len(classes) - 1}"
            )
    return [number - first for number in numbers if number is not None]


def first_number(entries: Sequence[Entry]) -> int:
    """The number of the first class: 0 where a 0 is among the labels, and 1 otherwise."""
    return 0 if any(parse_whole(entry.label) == 0 for entry in entries) else 1
