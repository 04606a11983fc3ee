"""Which pictures are meant, in order: files, folders, dataset folders, and lines of standard input."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

from adadf_dist.data.folder_tree import Skipped, walk_files
from adadf_dist.data.format import Split, open_dataset
from adadf_dist.data.jpeg import BadImage, decode, image_suffixes, is_image_name, to_grey_or_rgb
from adadf_dist.data.loader import decode_stored
from adadf_dist.data.manifest import MANIFEST
from adadf_dist.errors import UserError
from adadf_dist.text_files import decode_lines, escape_name, native_name

STDIN = "-"


class Picture(NamedTuple):
    """A picture to be read when its turn comes."""

    name: str
    """What its row is called: a path, or SPLIT/KEY of a dataset."""
    load: Callable[[], Image.Image]
    """Grey or RGB, and upright. Raises `BadImage`, `OSError`."""


class Inputs(NamedTuple):
    pictures: Iterator[Picture]
    total: int | None
    """None where paths come from standard input."""
    skipped: Skipped
    """What was left out in folders. A file given by its name may be called anything."""


def find_pictures(paths: Sequence[str], split: str | None) -> Inputs:
    """All pictures that the command line names. Raises `UserError` for what is not there, or holds no picture."""
    found: list[Iterator[Picture]] = []
    total: int | None = 0
    datasets = 0
    skipped = Skipped()
    for path in paths:
        if path == STDIN:
            found.append(lines_of_stdin())
            total = None
            continue
        if os.path.isfile(os.path.join(path, MANIFEST)):
            pictures, count = stored(Path(path), split)
            datasets += 1
        elif os.path.isdir(path):
            files = list(images_below(path, skipped))
            pictures, count = map(file_picture, files), len(files)
        elif os.path.exists(path):
            pictures, count = iter([file_picture(path)]), 1
        else:
            raise UserError(f"{escape_name(path)}: no such file or folder")
        found.append(pictures)
        total = None if total is None else total + count
    if split is not None and not datasets:
        raise UserError(f"--split {split}: none of the paths is a dataset folder (one with a {MANIFEST})")
    if total == 0:
        note = f"; {skipped.describe()}" if skipped.kinds else ""
        raise UserError(
            f"no pictures found in {', '.join(map(escape_name, paths))}; their names would end in "
            f"{', '.join(sorted(image_suffixes()))}{note}"
        )
    return Inputs((picture for pictures in found for picture in pictures), total, skipped)


def images_below(folder: str, skipped: Skipped) -> Iterator[str]:
    """Paths of images in a folder and those below it, sorted within each. Raises `UserError`."""
    for path in walk_files(folder, skipped):
        if is_image_name(path):
            yield path
        else:
            skipped.add(path, "other files")


def lines_of_stdin() -> Iterator[Picture]:
    """A picture a line, each as soon as the line is there."""
    if sys.stdin is None:
        raise UserError("standard input is closed, so it names no pictures")
    # not sys.stdin: a thread that waits in it would hold up the end of the program
    with open(sys.stdin.fileno(), "rb", closefd=False) as stream:
        for line in decode_lines(stream, "standard input", any_bytes=True):
            if path := line.rstrip("\n"):
                yield file_picture(native_name(path))


def file_picture(path: str) -> Picture:
    return Picture(path, partial(load_file, path))


def load_file(path: str) -> Image.Image:
    """As the builder reads a source's pictures. Raises `BadImage`, `OSError`."""
    with open(path, "rb") as file:
        data = file.read()
    if not data:
        raise BadImage("empty file")
    return to_grey_or_rgb(ImageOps.exif_transpose(decode(data)))


def stored(folder: Path, name: str | None) -> tuple[Iterator[Picture], int]:
    """The faces of a split of a dataset, in their order; `test` unless told otherwise. Raises `UserError`."""
    dataset = open_dataset(folder)
    if name is None and "test" not in dataset.splits:
        raise UserError(f"{folder}: has no test split; give --split, one of {', '.join(dataset.splits)}")
    split = dataset.split(name or "test")
    return (stored_picture(split, sample) for sample in range(len(split))), len(split)


def stored_picture(split: Split, sample: int) -> Picture:
    return Picture(f"{split.name}/{split.keys[sample]}", lambda: decode_stored(split.read(sample)))
