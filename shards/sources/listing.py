"""Everyone's own data: a csv of paths and labels."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from adadf_dist.data.builder import Source
from adadf_dist.errors import UserError
from shards.aligned import add_align_arguments, open_photos
from shards.sources.folder import wanted_fractions
from shards.sources.photos import (
    SPLIT_FOLDERS,
    Listing,
    Picture,
    add_photo_arguments,
    photo_options,
    stay_inside,
)
from shards.sources.rafdb import numbers

VOTES = "votes_"
HELP = "any list `path,label[,split][,votes_CLASS ...]`"
DESCRIPTION = """\
Reads a csv with a header. Columns, in any order; others are left alone:

path          of the picture, relative to --root (default: the csv's folder)
label         a class's name, or its number from 0
split         train, validation (val, valid) or test; without the column all is train
votes_CLASS   annotators (or shares) who chose CLASS, one column for each class

Classes are --classes, or the votes' columns in order, or the labels: names sorted, numbers as they are.
"""
EPILOG = """\
example:
  python -m shards.build csv --csv faces.csv --root pictures --out data/faces --classes neutral,happy,sad
"""


class Row(NamedTuple):
    """A line of the csv."""

    where: str
    path: str
    label: str
    split: str
    votes: tuple[float, ...] | None


def list_csv(path: Path, classes: Sequence[str] | None) -> Listing:
    """Every picture. Raises `UserError`."""
    rows, voted = read_rows(path)
    names = tuple(classes or voted or class_names([row.label for row in rows]))
    if voted and sorted(voted) != sorted(names):
        raise UserError(f"{path}: votes of {', '.join(voted)}, but the classes are {', '.join(names)}")
    order = [voted.index(name) for name in names] if voted else []
    pictures: dict[str, Picture] = {}
    for row in rows:
        label = names.index(row.label) if row.label in names else int(row.label) if row.label.isdigit() else -1
        if not 0 <= label < len(names):
            raise UserError(f"{row.where}: label {row.label!r} is none of {', '.join(names)}; name them with --classes")
        if row.path in pictures:
            raise UserError(f"{row.where}: {row.path} a second time; keep one of its lines")
        votes = None if row.votes is None else tuple(row.votes[column] for column in order)
        pictures[row.path] = Picture(row.path, row.split, label, votes)
    return Listing("csv", names, list(pictures.values()), f"list {path.name}")


def read_rows(path: Path) -> tuple[list[Row], list[str]]:
    """The lines, and the classes that have a column of votes. Raises `UserError`."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            header = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = header
            for column in ("path", "label"):
                if column not in header:
                    raise UserError(
                        f"{path} line 1: no column {column}; the header has {', '.join(header) or 'nothing'}"
                    )
            voted = [name.removeprefix(VOTES) for name in header if name.startswith(VOTES)]
            rows = [read_row(row, f"{path} line {reader.line_num}", voted) for row in reader]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the list as --csv") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: is no csv in UTF-8 ({error})") from None
    if not rows:
        raise UserError(f"{path}: no line below the header")
    return rows, voted


def read_row(row: Mapping[str, str | None], where: str, voted: Sequence[str]) -> Row:
    cells = {name: (value or "").strip() for name, value in row.items() if name is not None}
    if None in row.values() or None in row:
        raise UserError(f"{where}: not as many cells as the header has columns")
    split = SPLIT_FOLDERS.get(cells["split"].lower()) if "split" in cells else "train"
    if split is None:
        raise UserError(f"{where}: split {cells['split']!r}; write train, validation or test")
    votes = numbers([cells[VOTES + name] or "0" for name in voted])
    if len(votes) != len(voted) or any(vote < 0 for vote in votes):
        raise UserError(f"{where}: votes must be numbers of 0 or more")
    path = stay_inside(cells["path"], where)
    return Row(where, path, cells["label"], split, tuple(votes) if any(votes) else None)


def class_names(labels: Sequence[str]) -> list[str]:
    found = set(labels)
    if all(label.isdigit() and len(label) < 4 for label in found):
        return [str(number) for number in range(max(map(int, found)) + 1)]
    return sorted(found)


def add_arguments(parser: argparse._ArgumentGroup, csv_option: bool = True) -> None:
    if csv_option:
        parser.add_argument("--csv", type=Path, required=True, metavar="FILE", help="the list")
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="folder that the paths start from (default: the csv's)"
    )
    parser.add_argument("--classes", metavar="A,B,...", help="names in label order")
    add_photo_arguments(parser, {"validation": "0.1 where the list has none", "test": "none"})
    add_align_arguments(parser)


def open_source(args: argparse.Namespace) -> Source:
    args.root = args.root or args.csv.parent
    if not args.root.is_dir():
        raise UserError(f"--root {args.root}: no such folder")
    classes = [name.strip() for name in args.classes.split(",")] if args.classes else None
    listing = list_csv(args.csv, classes)
    present = sorted({picture.split for picture in listing.pictures})
    return open_photos(listing, photo_options(args, wanted_fractions(args, present)), args)
