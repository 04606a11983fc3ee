"""Reads the single-label part of RAF-DB: real-world faces with one basic emotion each."""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adadf_dist.data.build.folder_tree import Skipped, check_root
from adadf_dist.data.build.source import Source
from adadf_dist.data.emotions import find_label
from adadf_dist.data.jpeg import InvalidImageError
from adadf_dist.errors import UserError
from adadf_dist.files.csv_tables import Row, parse_number, parse_whole, read_list, read_number
from adadf_dist.files.text import open_text
from shards.alignment import add_align_arguments, make_source
from shards.image_files import (
    ImageEntry,
    SourceListing,
    add_image_arguments,
    check_relative_path,
    count_skipped,
    list_files,
    read_bytes,
    read_image_options,
)
from shards.sources.splits import fractions_to_hold_out

CLASSES = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
"""Class names in label order; RAF-DB's labels start at 1."""
LABELS = "EmoLabel/list_patition_label.txt"  # the publishers' spelling
VOTES = "EmoLabel/distribution.txt"
IMAGES = {"aligned": "Image/aligned", "original": "Image/original"}
POINTS = "Annotation/manual"
"""Folder of NAME_manu_attri.txt files: five lines `x y` (eyes, nose, mouth corners), then gender, race and age."""
PEOPLE = {
    "gender": ("male", "female", "unsure"),
    "race": ("Caucasian", "African-American", "Asian"),
    "age": ("0-3", "4-19", "20-39", "40-69", "70+"),
}
"""Names of the three fields that follow the points in each file, with the meanings of their codes, starting at 0."""
BOXES = "Annotation/boundingbox"
"""Folder of NAME_boundingbox.txt files: left, top, right, bottom of the labeled face; RAF-DB 1.1 and later."""

HELP = "RAF-DB: EmoLabel/list_patition_label.txt and Image/aligned or Image/original"
DESCRIPTION = f"""\
Reads DIR/{LABELS} (labels 1 to 7: {", ".join(CLASSES)}) and
DIR/Image/aligned/*_aligned.jpg, or with --images original DIR/Image/original/*. DIR is the folder `basic` or its
parent.

splits      train_* is train, test_* is test; validation is held out from train
votes       {VOTES}, if present: one line `name fraction fraction ...` per face, with seven fractions in
            label order, or six without neutral; a header may name the columns in another order. Images not listed
            have no votes; unknown names are an error. Names may end in _aligned in both lists.
KEY.json    if available: gender, race and age (a range in years) from {POINTS}; with --images original
            also its five points (used by --align landmarks) and the face box from {BOXES}
            (used by --align detect to select the face)
"""
EPILOG = """\
examples:
  python -m shards.build rafdb --root RAF-DB/basic --out data/rafdb
  python -m shards.build rafdb --root RAF-DB/basic --out data/rafdb --images original --align landmarks
"""


def list_rafdb(root: Path, images: str) -> SourceListing:
    """List every labeled image.

    Raises `UserError` if the label list or image folder is missing, or a list is malformed.
    """
    base = find_base(root)
    below = (base / IMAGES[images]).relative_to(root).as_posix()
    if not (root / below).is_dir():
        raise UserError(f"{root / below}: no such folder; --images {images} needs it")
    skipped = Skipped()
    existing = {path.rpartition("/")[2] for path in list_files(root, below, skipped)}
    entries: dict[str, ImageEntry] = {}
    for name, label, where in read_labels(base / LABELS):
        stem = find_stem(name)
        if stem in entries:
            raise UserError(f"{where}: {name} is listed twice; keep one line")
        path = f"{below}/{find_file(name, images, existing)}".removeprefix("./")
        entries[stem] = ImageEntry(path, find_split(name, where), label)
    if (base / VOTES).is_file():
        for stem, votes in read_votes(base / VOTES, entries).items():
            entries[stem] = entries[stem]._replace(votes=votes if any(votes) else None)
    extra = existing - {entry.path.rpartition("/")[2] for entry in entries.values()}
    stats = {
        **count_skipped(skipped),
        "images_without_label": len(extra),
        "faces_with_votes": sum(entry.votes is not None for entry in entries.values()),
    }
    listed = list(entries.values())
    annotations = TextAnnotations(base, listed, images == "original")
    return SourceListing("rafdb", CLASSES, listed, f"single-label part, {images} images", stats, annotations)


def find_stem(name: str) -> str:
    """Return an image name without its extension and `_aligned`, so that names in the label and vote lists match."""
    stem, dot, extension = name.rpartition(".")
    if not dot or not extension.isalpha():  # some vote lists have no extension
        stem = name
    return stem.removesuffix("_aligned")


def find_file(name: str, images: str, existing: Collection[str]) -> str:
    """Return the file name of a listed image. Aligned images end in `_aligned` even if the list omits this."""
    extension = name.rpartition(".")[2]
    plain, aligned = f"{find_stem(name)}.{extension}", f"{find_stem(name)}_aligned.{extension}"
    wanted, other = (aligned, plain) if images == "aligned" else (plain, aligned)
    return other if images == "aligned" and other in existing and wanted not in existing else wanted


@dataclass(frozen=True)
class TextAnnotations:
    """Reads the annotations of an image.

    Landmarks and box are in pixels of the original photo, so they are read for original images only.
    """

    base: Path
    entries: Sequence[ImageEntry]
    original: bool

    def __call__(self, number: int) -> Mapping[str, object]:
        stem = self.entries[number].path.rpartition("/")[2].rpartition(".")[0]
        if not self.original:
            return read_person(self.base / POINTS / f"{stem.removesuffix('_aligned')}_manu_attri.txt")
        attributes = self.base / POINTS / f"{stem}_manu_attri.txt"
        found = read_person(attributes)
        points = read_annotation(attributes, 10)
        if points is not None:
            found["landmarks"] = [points[first : first + 2] for first in range(0, 10, 2)]
        box = read_annotation(self.base / BOXES / f"{stem}_boundingbox.txt", 4)
        if box is not None:
            found["box"] = box
        return found


def read_person(path: Path) -> dict[str, object]:
    """Return the gender, race and age in a file as named in `PEOPLE`, omitting missing or unknown codes."""
    if not path.is_file():
        return {}
    codes = read_bytes(str(path))[0].decode(errors="replace").split()[10:13]
    known = zip(PEOPLE.items(), codes, strict=False)  # a file may contain points only
    return {name: words[int(code)] for (name, words), code in known if code.isdecimal() and int(code) < len(words)}


def read_annotation(path: Path, count: int) -> list[float] | None:
    """Return the first `count` numbers of a file, or None if it does not exist.

    Raises `InvalidImageError` if the file does not start with that many numbers.
    """
    if not path.is_file():
        return None
    words = read_bytes(str(path))[0].decode(errors="replace").split()[:count]
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    if len(values) != count or not all(map(math.isfinite, values)):
        raise InvalidImageError(f"annotation {path.name} does not start with {count} numbers")
    return values


def find_base(root: Path) -> Path:
    """Return the folder that contains EmoLabel: the root or its subfolder `basic`.

    Raises `UserError` if neither contains it.
    """
    check_root(root, "pass the folder that contains EmoLabel and Image as --root")
    for base in (root, root / "basic"):
        if (base / LABELS).is_file():
            return base
    found = ", ".join(sorted(entry.name for entry in root.iterdir())[:8]) or "nothing"
    raise UserError(f"{root}: expected {LABELS} here or in basic/, found {found}; pass RAF-DB's folder as --root")


def read_labels(path: Path) -> list[tuple[str, int, str]]:
    """Return the image name, the label (starting at 0) and the location of each line in the label list.

    Raises `UserError` if the list is empty or a line is malformed.
    """
    rows = []
    for row in read_rows(path):
        if len(row.cells) != 2 or "." not in row.cells[0]:
            raise UserError(
                f"{row.where}: {' '.join(row.cells)[:60]!r} is not `name label`, for example `train_00001.jpg 5`"
            )
        name, label = row.cells[0], parse_whole(row.cells[1])
        if label is None or not 1 <= label <= len(CLASSES):
            hint = "; this list seems to start at 0, but the published one starts at 1" if label == 0 else ""
            raise UserError(f"{row.where}: label {row.cells[1]!r} must be a number from 1 to {len(CLASSES)}{hint}")
        rows.append((check_relative_path(name, row.where), label - 1, row.where))
    if not rows:
        raise UserError(f"{path}: empty file; re-download it")
    return rows


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a list. Cells are separated by spaces, or by the separator found in the list's first line.

    Raises `UserError` if the list cannot be read.
    """
    with open_text(path) as lines:
        return list(read_list(lines, str(path)))


def find_split(name: str, where: str) -> str:
    for split in ("train", "test"):
        if name.rpartition("/")[2].startswith(f"{split}_"):
            return split
    raise UserError(f"{where}: {name} starts with neither train_ nor test_, so its split is unknown")


def read_votes(path: Path, known: Collection[str]) -> Mapping[str, tuple[float, ...]]:
    """Map each image name, as returned by `find_stem`, to its vote fractions [C].

    Raises `UserError` if the list is malformed, or if it contains a name that is not in `known`, the labeled images.
    """
    rows = read_rows(path)
    order: Sequence[int] = range(len(CLASSES))
    if rows and len(rows[0].cells) > 1 and not any(math.isfinite(parse_number(cell)) for cell in rows[0].cells[1:]):
        order = column_order(rows.pop(0))
    votes: dict[str, tuple[float, ...]] = {}
    for row in rows:
        name, *cells = row.cells
        if len(cells) not in (len(CLASSES) - 1, len(CLASSES)) or len(cells) > len(order):
            raise UserError(f"{row.where}: expected a name and 6 or 7 nonnegative fractions in label order")
        fractions = [0.0] * len(CLASSES)
        for label, cell in zip(order, cells, strict=False):
            fractions[label] = read_number(cell, row.where, "fractions")
        stem = find_stem(name.replace("\\", "/").rpartition("/")[2])
        if stem not in known:
            raise UserError(f"{row.where}: votes for {name}, which is not in {LABELS}; fix or remove the line")
        if stem in votes:
            raise UserError(f"{row.where}: {name} is listed twice; keep one line")
        votes[stem] = tuple(fractions)
    return votes


def column_order(header: Row) -> list[int]:
    """Return the class index of each vote column named in the header.

    Raises `UserError` if a column names no class, or if two name the same class.
    """
    order = [find_label(cell, CLASSES) for cell in header.cells[1:]]
    found = [label for label in order if label is not None]
    if len(found) < len(order) or len(set(found)) < len(found):
        raise UserError(f"{header.where}: columns are {', '.join(header.cells[1:])}, expected {', '.join(CLASSES)}")
    return found


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder with EmoLabel and Image")
    parser.add_argument(
        "--images", choices=tuple(IMAGES), default="aligned", help="images to store (default: %(default)s)"
    )
    add_image_arguments(parser, {"validation": "0.1"})
    add_align_arguments(parser)


def open_source(args: argparse.Namespace) -> Source:
    listing = list_rafdb(args.root, args.images)
    return make_source(listing, read_image_options(args, fractions_to_hold_out(args, listing.splits)), args)
