"""Reads a custom dataset: a CSV file that lists image paths and labels."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from adadf_dist.console.logs import NO_PREFIX, get_logger
from adadf_dist.data.build.folder_tree import check_root
from adadf_dist.data.build.source import Source
from adadf_dist.data.manifest import SPLITS
from adadf_dist.errors import UserError
from adadf_dist.files.csv_tables import Row, find_class, open_table, parse_whole, read_votes
from adadf_dist.files.text import escape_name, is_printable_name, located, open_text
from shards.alignment import add_align_arguments, make_source
from shards.image_files import (
    ImageEntry,
    SourceListing,
    add_image_arguments,
    check_relative_path,
    read_image_options,
)
from shards.sources.splits import fractions_to_hold_out, split_names

logger = get_logger(__name__)

VOTES = "votes_"
COLUMNS = ("path", "label", "split")
HELP = "custom CSV list `path,label[,split][,votes_CLASS ...]`"
DESCRIPTION = """\
Reads a CSV file with a header. Cells are separated by commas, semicolons, tabs or vertical bars, and the encoding is
UTF-8 (or UTF-16 with a byte order mark). These columns may be in any order; others are ignored and listed in a note:

path          image path relative to --root (default: the CSV file's folder)
label         class name, or class number starting at 0 (or --first-label)
split         train, validation (val, valid) or test; without this column, all images are in train
votes_CLASS   number (or fraction) of annotators who chose CLASS, one column per class

The classes are those of --classes, otherwise the vote columns in order, otherwise the labels, sorted by name
or number.
"""
EPILOG = """\
example:
  python -m shards.build csv --csv faces.csv --root pictures --out data/faces --classes neutral,happy,sad
"""


class Line(NamedTuple):
    """One parsed row of the CSV file."""

    where: str
    """File and line number, for messages."""
    path: str
    label: str
    split: str
    votes: tuple[float, ...] | None
    """Votes in the order of the vote columns; None if there are none."""


def list_csv(
    path: Path, classes: Sequence[str] | None, root: Path | None = None, first_label: int = 0
) -> SourceListing:
    """List every image in the CSV file.

    Raises `UserError` if the CSV file is malformed or contains an invalid label, path or split.

    Image paths are relative to `root` (default: the CSV file's folder), and `first_label` is the number of the first
    class.
    """
    lines, voted = read_lines(path, path.parent if root is None else root)
    if not first_label:
        check_first_label(path, [line.label for line in lines], (*(classes or ()), *voted))
    names = tuple(classes or voted or derive_classes(lines, first_label))
    if voted and sorted(voted) != sorted(names):
        raise UserError(
            f"{path}: the vote columns are for {', '.join(voted)}, but the classes are {', '.join(names)}; "
            "they must match"
        )
    order = [voted.index(name) for name in names] if voted else []
    images: dict[str, ImageEntry] = {}
    for line in lines:
        if line.path in images:
            raise UserError(f"{line.where}: {escape_name(line.path)} is listed twice; keep one line")
        label = find_label(line, names, first_label)
        votes = None if line.votes is None else tuple(line.votes[column] for column in order)
        images[line.path] = ImageEntry(line.path, line.split, label, votes)
    return SourceListing("csv", names, list(images.values()), f"list {escape_name(path.name)}")


def read_lines(path: Path, root: Path) -> tuple[list[Line], list[str]]:
    """Return the CSV file's rows, and the classes of its vote columns in column order.

    Raises `UserError` if the CSV file is malformed or contains no rows.
    """
    with open_text(path) as text:
        table = open_table(text, located(path), ("path", "label"), ("split",))
        if note := table.note():
            logger.info(f"note: {note}")
        columns = find_vote_columns(table.header, located(path))
        ignored: dict[str, set[str]] = {
            name: set() for name in table.header if name and name not in (*COLUMNS, *columns)
        }
        found = []
        for row, cells in table.records():
            found.append(read_line(row, cells, list(columns), root))
            for name, values in ignored.items():
                if len(values) <= len(SPLITS):
                    values.add(cells[name])
    if not found:
        raise UserError(f"{path}: no lines after the header; list at least one image")
    check_ignored_columns(ignored, path, "split" in table.header)
    splits = split_names({split for _, split in found})
    for line, word in found:
        if splits[word] is None:
            raise UserError(f"{line.where}: split {word!r} must be train, validation or test")
    return [line._replace(split=splits[word] or "train") for line, word in found], list(columns.values())


def find_vote_columns(header: Sequence[str], where: str) -> dict[str, str]:
    """Map the name of each vote column to its class; the column prefix may be in any letter case.

    Raises `UserError` if a column names no class, or if two columns name the same class.
    """
    found = {name: name[len(VOTES) :].strip() for name in header if name.lower().startswith(VOTES)}
    for name, of_class in found.items():
        if not of_class:
            raise UserError(
                f"{where}: column {name} names no class; rename it to {VOTES}CLASS, where CLASS is the class name"
            )
        check_class_name(of_class, where)
    for of_class, count in Counter(found.values()).items():
        if count > 1:
            raise UserError(f"{where}: {count} vote columns for class {of_class}; keep one")
    return found


def check_ignored_columns(columns: Mapping[str, set[str]], path: Path, has_split: bool) -> None:
    """Log the names of ignored columns. Raises `UserError` if one seems to contain the splits.

    `columns` maps each ignored column to some of its values.
    """
    for name, values in columns.items():
        if not has_split and len(values) > 1 and all(split_names(values).values()):
            raise UserError(
                f"{path}: column {name} contains {', '.join(sorted(values))}; if these are the splits, rename the "
                "column to split, otherwise remove it"
            )
    if columns:
        logger.info(f"note: {path}: ignored columns: {', '.join(map(escape_name, columns))}")


def check_class_name(name: str, where: str) -> None:
    """Raise `UserError` if a class name contains control characters."""
    if not is_printable_name(name):
        raise UserError(f"{where}: class name {name!r} contains control characters; remove them")


def read_line(row: Row, cells: Mapping[str, str], vote_columns: Sequence[str], root: Path) -> tuple[Line, str]:
    """Return the parsed row and the text of its split cell, which can only be interpreted after reading all rows.

    Raises `UserError` if the label is empty, or if a vote or the path is invalid.
    """
    if not cells["label"]:
        raise UserError(f"{row.where}: empty label; fill it in or remove the line")
    check_class_name(cells["label"], row.where)
    votes = read_votes([cells[name] for name in vote_columns], row.where)
    path = check_relative_path(cells["path"], row.where, root)
    return Line(row.where, path, cells["label"], "", votes if any(votes) else None), cells.get("split", "train")


def find_label(line: Line, names: Sequence[str], first_label: int) -> int:
    """Return the class index of a row whose label is a class name or number. Raises `UserError` if it is neither."""
    label = find_class(line.label, names)
    if label is not None:
        return label
    number = parse_whole(line.label)
    if number is not None and 0 <= number - first_label < len(names):
        return number - first_label
    raise UserError(
        f"{line.where}: label {line.label!r} is not one of {', '.join(names)}; correct it, or list all "
        "classes in --classes"
    )


def check_first_label(path: Path, labels: Sequence[str], names: Sequence[str]) -> None:
    """Raise `UserError` if all labels are numbers that seem to start at 1, and none is one of the class `names`."""
    numbers = [number for label in labels if (number := parse_whole(label)) is not None]
    if len(numbers) == len(labels) and min(numbers) == 1 and not set(labels) & set(names):
        raise UserError(
            f"{path}: labels are 1 to {max(numbers)}, so they seem to start at 1; pass --first-label 1"
            + ("" if names else " (and --classes A,B,... to name the classes)")
        )


def derive_classes(lines: Sequence[Line], first_label: int) -> list[str]:
    """Return the class names that the labels define: sorted names, or consecutive numbers if all labels are numbers.

    Raises `UserError` if a number is below `first_label`.
    """
    numbers = [parse_whole(line.label) for line in lines]
    known = [number for number in numbers if number is not None]
    if len(known) < len(lines) or max(known) > 999:
        if known:
            line = lines[numbers.index(known[0])]
            text = f"{line.where}: warning: label {line.label!r} is a number, but others are names"
            logger.warning(text, extra=NO_PREFIX)
        return sorted({line.label for line in lines})
    if min(known) < first_label:
        line = lines[known.index(min(known))]
        raise UserError(f"{line.where}: label {line.label} is below --first-label {first_label}")
    return [str(number) for number in range(first_label, max(known) + 1)]


def add_arguments(parser: argparse._ArgumentGroup, csv_option: bool = True) -> None:
    if csv_option:
        parser.add_argument("--csv", type=Path, required=True, metavar="FILE", help="csv file")
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="folder that image paths are relative to (default: the CSV file's folder)",
    )
    parser.add_argument("--classes", metavar="A,B,...", help="class names in label order")
    parser.add_argument(
        "--first-label", type=int, choices=(0, 1), default=0, help="number of the first class (default: %(default)s)"
    )
    add_image_arguments(parser, {"validation": "0.1 if the CSV file has no validation split", "test": "none"})
    add_align_arguments(parser)


def open_source(args: argparse.Namespace) -> Source:
    args.root = args.root or args.csv.parent
    check_root(args.root, "pass the folder that the CSV file's paths are relative to as --root")
    classes = [name.strip() for name in args.classes.split(",")] if args.classes else None
    if classes and (not all(classes) or len(set(classes)) < len(classes)):
        raise UserError(f"--classes {args.classes}: class names must be unique and not empty")
    listing = list_csv(args.csv, classes, args.root, args.first_label)
    return make_source(listing, read_image_options(args, fractions_to_hold_out(args, listing.splits)), args)
