"""RAF-DB: real-world faces, the part with one basic emotion each."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adadf_dist.data.builder import Source
from adadf_dist.data.jpeg import BadImage
from adadf_dist.errors import UserError
from shards.aligned import add_align_arguments, open_photos
from shards.sources.photos import (
    Listing,
    Picture,
    add_photo_arguments,
    carve_validation,
    list_files,
    photo_options,
    read_bytes,
    stay_inside,
)

CLASSES = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")
"""In the order of the labels, which count from 1."""
LABELS = "EmoLabel/list_patition_label.txt"  # spelt so by its publishers
VOTES = "EmoLabel/distribution.txt"
IMAGES = {"aligned": "Image/aligned", "original": "Image/original"}
POINTS = "Annotation/manual"
"""NAME_manu_attri.txt: five lines `x y` (eyes, nose, corners of the mouth), then gender, race and age."""
PEOPLE = {
    "gender": ("male", "female", "unsure"),
    "race": ("Caucasian", "African-American", "Asian"),
    "age": ("0-3", "4-19", "20-39", "40-69", "70+"),
}
"""What the three numbers after the points mean, counted from 0."""
BOXES = "Annotation/boundingbox"
"""NAME_boundingbox.txt: left, top, right, bottom of the face that is meant; since version 1.1."""

HELP = "RAF-DB: EmoLabel/list_patition_label.txt and Image/aligned or Image/original"
DESCRIPTION = f"""\
Reads DIR/{LABELS} (labels 1 to 7: {", ".join(CLASSES)}) and
DIR/Image/aligned/*_aligned.jpg, or with --images original DIR/Image/original/*. DIR may also be the folder `basic` or
the one above it.

splits      train_* is train, test_* is test; validation is carved out of train
votes       {VOTES}, where it is there: a line `name share share ...` for each face, in label order, six or seven
            shares (six: no neutral). Faces it does not name have no votes.
KEY.json    where they are there: gender, race and age (in years, from-to) of {POINTS}; with --images original
            also its five points (--align landmarks takes them) and the box of {BOXES} (--align
            detect takes the face on it)
"""
EPILOG = """\
examples:
  python -m shards.build rafdb --root RAF-DB/basic --out data/rafdb
  python -m shards.build rafdb --root RAF-DB/basic --out data/rafdb --images original --align landmarks
"""


def list_rafdb(root: Path, images: str) -> Listing:
    """Every picture that is labelled. Raises `UserError`."""
    base = find_base(root)
    votes = read_votes(base / VOTES) if (base / VOTES).is_file() else {}
    below = (base / IMAGES[images]).relative_to(root).as_posix()
    if not (root / below).is_dir():
        raise UserError(f"{root / below}: no such folder, but --images {images} reads the pictures there")
    there = {path.rpartition("/")[2] for path in list_files(root, below)}
    pictures: dict[str, Picture] = {}
    for name, label, where in read_labels(base / LABELS):
        stem, _, extension = name.rpartition(".")
        file = f"{stem}_aligned.{extension}" if images == "aligned" else name
        if name in pictures:
            raise UserError(f"{where}: {name} a second time; keep one of its lines")
        pictures[name] = Picture(f"{below}/{file}".removeprefix("./"), split_of(name, where), label, votes.get(stem))
    extra = there - {picture.path.rpartition("/")[2] for picture in pictures.values()}
    findings = {
        "images_without_label": len(extra),
        "faces_with_votes": sum(p.votes is not None for p in pictures.values()),
    }
    listed = list(pictures.values())
    facts = Facts(base, listed, images == "original")
    return Listing("rafdb", CLASSES, listed, f"single-label part, {images} images", findings, facts)


@dataclass(frozen=True)
class Facts:
    """Annotations of a face; its places, which are in pixels of the original photograph, only for that."""

    base: Path
    pictures: Sequence[Picture]
    original: bool

    def __call__(self, number: int) -> Mapping[str, object]:
        stem = self.pictures[number].path.rpartition("/")[2].rpartition(".")[0]
        if not self.original:
            return read_person(self.base / POINTS / f"{stem.removesuffix('_aligned')}_manu_attri.txt")
        attributes = self.base / POINTS / f"{stem}_manu_attri.txt"
        facts = read_person(attributes)
        points = read_annotation(attributes, 10)
        if points is not None:
            facts["landmarks"] = [points[first : first + 2] for first in range(0, 10, 2)]
        box = read_annotation(self.base / BOXES / f"{stem}_boundingbox.txt", 4)
        if box is not None:
            facts["box"] = box
        return facts


def read_person(path: Path) -> dict[str, object]:
    """Gender, race and age by the words of `PEOPLE`; what the file does not say, or by no known number, is left out."""
    if not path.is_file():
        return {}
    codes = read_bytes(str(path))[0].decode(errors="replace").split()[10:13]
    known = zip(PEOPLE.items(), codes, strict=False)  # a file of points alone ends there
    return {name: words[int(code)] for (name, words), code in known if code.isdecimal() and int(code) < len(words)}


def read_annotation(path: Path, count: int) -> list[float] | None:
    """The first `count` numbers of a file; None where there is no such file. Raises `BadImage`."""
    if not path.is_file():
        return None
    values = numbers(read_bytes(str(path))[0].decode(errors="replace").split()[:count])
    if len(values) != count or not all(map(math.isfinite, values)):
        raise BadImage(f"annotation {path.name} does not begin with {count} numbers")
    return values


def find_base(root: Path) -> Path:
    """The folder that holds EmoLabel. Raises `UserError`."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the one that holds EmoLabel and Image as --root")
    for base in (root, root / "basic"):
        if (base / LABELS).is_file():
            return base
    seen = ", ".join(sorted(entry.name for entry in root.iterdir())[:8]) or "nothing"
    raise UserError(f"{root}: looked for {LABELS} there and below basic/, saw {seen}; give RAF-DB's folder as --root")


def read_labels(path: Path) -> list[tuple[str, int, str]]:
    """(file name, label from 0, where it stands). Raises `UserError`."""
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        where = f"{path} line {number}"
        words = line.split()
        if len(words) != 2 or "." not in words[0]:
            raise UserError(f"{where}: {line.strip()[:60]!r} is no `name label`, like `train_00001.jpg 5`")
        if not words[1].isdigit() or not 1 <= int(words[1]) <= len(CLASSES):
            raise UserError(f"{where}: label {words[1]!r}; RAF-DB's are 1 to {len(CLASSES)}")
        rows.append((stay_inside(words[0], where), int(words[1]) - 1, where))
    if not rows:
        raise UserError(f"{path}: no line in it; get the file again")
    return rows


def split_of(name: str, where: str) -> str:
    for split in ("train", "test"):
        if name.rpartition("/")[2].startswith(f"{split}_"):
            return split
    raise UserError(f"{where}: {name} begins neither with train_ nor with test_, so its split is not known")


def read_votes(path: Path) -> Mapping[str, tuple[float, ...]]:
    """Stem of a picture's name -> [C] shares. Raises `UserError`."""
    votes = {}
    for number, line in enumerate(read_lines(path), start=1):
        name, *words = line.split()
        shares = numbers(words)
        if len(shares) not in (len(CLASSES) - 1, len(CLASSES)) or min(shares) < 0:
            raise UserError(f"{path} line {number}: needs a name and 6 or 7 shares of 0 or more, in label order")
        votes[name.rpartition(".")[0] or name] = (*shares, *[0.0] * (len(CLASSES) - len(shares)))
    return votes


def numbers(words: Sequence[str]) -> list[float]:
    """Empty when one of the words is no number."""
    try:
        return [float(word) for word in words]
    except ValueError:
        return []


def read_lines(path: Path) -> list[str]:
    """The lines that are not empty. Raises `UserError`."""
    try:
        return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not text in UTF-8; get the file again") from None


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder with EmoLabel and Image")
    parser.add_argument("--images", choices=tuple(IMAGES), default="aligned", help="default: %(default)s")
    add_photo_arguments(parser, {"validation": "0.1"})
    add_align_arguments(parser)


def open_source(args: argparse.Namespace) -> Source:
    return open_photos(
        list_rafdb(args.root, args.images), photo_options(args, carve_validation(args, present=False)), args
    )
