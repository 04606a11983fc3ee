"""Any dataset that is stored as one folder a class."""

from __future__ import annotations

import argparse
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from adadf_dist.data.builder import MAX_KEY, Item, Provenance
from adadf_dist.data.jpeg import FORMATS, BadImage, to_jpeg
from adadf_dist.data.writer import Sample
from adadf_dist.errors import UserError
from shards.progress import watched
from shards.twins import digest, part

HELP = "one folder a class, with or without train/, validation/ and test/ above them"
DESCRIPTION = f"""\
Reads DIR/train/CLASS/*, DIR/validation/CLASS/* (or val, valid) and DIR/test/CLASS/*, or DIR/CLASS/*. A split that has
no folder can be carved out of train, class by class. Classes are the folders' names, sorted;
pictures may lie in folders below.

images      a JPEG is stored as it is; another format ({", ".join(f for f in FORMATS if f != "JPEG")}), a JPEG with
            rotation in its EXIF and one that is neither grey nor RGB are encoded anew at quality 95; files with other
            extensions are counted and left alone
leaks       faces of train with a byte-identical copy in validation or test (and of validation with one in test) are
            dropped and listed in leaks.csv; carving keeps copies together
"""
EPILOG = """\
examples:
  python -m shards.build folder --root faces --out data/faces --validation-fraction 0.1 --test-fraction 0.2
  python -m shards.build folder --root faces --out data/faces --image-size 256 --max-bad 3
"""

SPLIT_FOLDERS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


class Picture(NamedTuple):
    """A file of the tree."""

    path: str
    """Below the root, with `/`."""
    split: str
    label: int


@dataclass(frozen=True)
class FolderOptions:
    """What decides the content of the dataset."""

    root: Path
    validation_fraction: float | None = None
    """Share of each class that is carved out of train, 0 for none; None: 0.1 where there is no such folder."""
    test_fraction: float | None = None
    """Likewise; None: none."""
    image_size: int | None = None
    """Longest allowed shorter side in pixels; larger images are made smaller."""
    seed: int = 0
    keep_leaks: bool = False


@dataclass(frozen=True)
class Folder:
    """A `Source`; face numbers are places in the sorted list of files."""

    root: Path
    pictures: Sequence[Picture]
    keys: Sequence[str]
    classes: tuple[str, ...]
    image_size: int | None
    splits: dict[int, str]
    provenance: Provenance

    @property
    def image_bytes(self) -> int:
        return sum(size_of(self.root / self.pictures[number].path) for number in self.splits)

    def items(self) -> Sequence[Item]:
        return [Item(split, self.keys[number], number) for number, split in self.splits.items()]

    def locate(self, number: int) -> str:
        return self.pictures[number].path

    def load(self, number: int) -> Sample:
        picture = self.pictures[number]
        image = to_jpeg(read_bytes(f"{self.root}/{picture.path}"), self.image_size)
        return Sample(image, picture.label, votes=None, distribution=None, source=picture.path, details={})


def read_bytes(path: str) -> bytes:
    """The file's content. Raises `BadImage`: one unreadable file is a finding like another."""
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror}") from None


def size_of(path: Path) -> int:
    """In bytes; 0 for a file that cannot be read, which is quarantined later."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def read_folder(options: FolderOptions) -> Folder:
    """List the tree, digest every file, drop leaks and carve splits. Raises `UserError`."""
    trees = find_splits(options.root)
    classes = find_classes(trees)
    found = list(list_pictures(options.root, trees, classes))
    pictures = [picture for picture in found if is_picture(picture.path)]
    counts = Counter((picture.split, picture.label) for picture in pictures)
    empty = [name for label, name in enumerate(classes) if not counts["train", label]]
    if empty:
        raise UserError(f"{trees['train'] / empty[0]}: no pictures in it; fill or remove the class")
    fractions = wanted_fractions(options, trees)
    parting = part(
        {number: picture.split for number, picture in enumerate(pictures)},
        [digest_file(f"{options.root}/{picture.path}") for picture in watched(pictures, "looking for copies")],
        [picture.label for picture in pictures],
        fractions,
        options.seed,
        options.keep_leaks,
    )
    leaks = parting.table(lambda number: pictures[number].path, [picture.label for picture in pictures], classes)
    provenance = Provenance(
        source="folder",
        options={**fractions, "image_size": options.image_size, "keep_leaks": options.keep_leaks},
        findings={"pictures": len(pictures), "other_files": len(found) - len(pictures), **parting.findings()},
        tables={"leaks.csv": leaks} if leaks.lines else {},
    )
    keys = make_keys([picture.path for picture in pictures])
    return Folder(options.root, pictures, keys, classes, options.image_size, dict(parting.splits), provenance)


def find_splits(root: Path) -> dict[str, Path]:
    """Split -> the folder that holds its classes. Raises `UserError`."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the one that holds the class folders as --root")
    folders = subfolders(root)
    if not folders:
        raise UserError(f"{root}: no folders in it; one folder a class is needed")
    if not any(name in SPLIT_FOLDERS for name in folders):
        return {"train": root}
    trees: dict[str, Path] = {}
    for name in folders:
        split = SPLIT_FOLDERS.get(name)
        if split is None:
            raise UserError(f"{root / name}: stands beside split folders but is none; move it away")
        if split in trees:
            raise UserError(f"{root}: holds both {trees[split].name} and {name}; keep one of them")
        trees[split] = root / name
    if "train" not in trees:
        raise UserError(
            f"{root}: holds {', '.join(folders)} but no train; add it, or give the folder above the classes"
        )
    return trees


def find_classes(trees: dict[str, Path]) -> tuple[str, ...]:
    """The class names, which are those of train. Raises `UserError`."""
    classes = tuple(subfolders(trees["train"]))
    if not classes:
        raise UserError(f"{trees['train']}: no folders in it; one folder a class is needed")
    for tree in trees.values():
        for name in subfolders(tree):
            if name not in classes:
                raise UserError(f"{tree / name}: a class that train does not have; rename or remove it")
    return classes


def subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def list_pictures(root: Path, trees: dict[str, Path], classes: Sequence[str]) -> Iterator[Picture]:
    """Every file below a class folder that is not hidden, sorted, pictures or not."""
    for split, tree in trees.items():
        for label, name in enumerate(classes):
            for folder, below, files in os.walk(tree / name):
                below[:] = sorted(entry for entry in below if not entry.startswith("."))
                for file in sorted(files):
                    if not file.startswith("."):
                        yield Picture((Path(folder) / file).relative_to(root).as_posix(), split, label)


def is_picture(path: str) -> bool:
    Image.init()
    return Image.EXTENSION.get(Path(path).suffix.lower()) in FORMATS


def digest_file(path: str) -> bytes:
    """What the file's content is known by; a file that cannot be read has no twin, and is quarantined later."""
    try:
        return digest(read_bytes(path))
    except BadImage:
        return digest(path.encode())


def wanted_fractions(options: FolderOptions, trees: dict[str, Path]) -> dict[str, float]:
    """What is to be carved out of train. Raises `UserError`."""
    asked = {"test": options.test_fraction, "validation": options.validation_fraction}
    for split, fraction in asked.items():
        if fraction is not None and split in trees:
            raise UserError(f"--{split}-fraction: {trees[split]} is that split already; leave the option out")
        if fraction is not None and not 0 <= fraction < 1:
            raise UserError(f"--{split}-fraction {fraction:g}: must be at least 0 and below 1")
    if options.validation_fraction is None and "validation" not in trees:
        asked["validation"] = 0.1
    fractions = {split: fraction for split, fraction in asked.items() if fraction}
    if sum(fractions.values()) >= 1:
        raise UserError("--validation-fraction and --test-fraction leave nothing to train on; make them smaller")
    return fractions


def make_keys(paths: Sequence[str]) -> list[str]:
    """A key for each path: plain characters, the end of the path where it is long, a number where two are alike."""
    keys: list[str] = []
    taken: set[str] = set()
    for path in paths:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", path.rpartition(".")[0]).strip("-")[-(MAX_KEY - 10) :]
        key, count = stem, 1
        while key in taken or not key:
            count += 1
            key = f"{stem}-{count}"
        taken.add(key)
        keys.append(key)
    return keys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--root", type=Path, required=True, metavar="DIR", help="folder with the class or split folders"
    )
    for split, default in (("validation", "0.1 where there is no such folder"), ("test", "none")):
        parser.add_argument(
            f"--{split}-fraction",
            type=float,
            metavar="F",
            help=f"share of each class to carve out of train for {split} (default: {default})",
        )
    parser.add_argument(
        "--image-size", type=int, metavar="N", help="make larger images smaller: shorter side N pixels (default: leave)"
    )
    parser.add_argument(
        "--keep-leaks", action="store_true", help="list leaks, but leave them in (as published figures do)"
    )


def open_source(args: argparse.Namespace) -> Folder:
    if args.image_size is not None and args.image_size < 16:
        raise UserError(f"--image-size {args.image_size}: at least 16 pixels")
    return read_folder(
        FolderOptions(
            args.root, args.validation_fraction, args.test_fraction, args.image_size, args.seed, args.keep_leaks
        )
    )
