"""Reads SFEW 2.0: movie frames in one folder per emotion."""

from __future__ import annotations

import argparse
from pathlib import Path

from adadf_dist.data.build.folder_tree import Skipped, check_root, subfolders
from adadf_dist.data.build.source import Source
from adadf_dist.data.emotions import find_label
from adadf_dist.data.jpeg import is_image_name
from adadf_dist.errors import UserError
from adadf_dist.files.text import escape_name
from shards.alignment import add_align_arguments, make_source
from shards.image_files import (
    ImageEntry,
    SourceListing,
    add_image_arguments,
    count_skipped,
    list_files,
    read_image_options,
)
from shards.sources.splits import fractions_to_hold_out

CLASSES = ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
HELP = "SFEW 2.0: Train/ and Val/ with folders Angry ... Surprise"
DESCRIPTION = f"""\
Reads DIR/Train/EMOTION/* and DIR/Val/EMOTION/* (or DIR/Train/Train_Aligned_Faces/EMOTION/*, and so on). The emotions,
in label order, are {", ".join(CLASSES)}.

splits      Since SFEW's test labels were not published, results are reported on Val. It becomes test here, and
            validation is held out from Train. If Test/ also has emotion folders, Val is validation and Test is test.
"""
EPILOG = """\
example:
  python -m shards.build sfew --root SFEW_2 --out data/sfew --align detect
"""


def list_sfew(root: Path) -> SourceListing:
    """List every image. Raises `UserError` if Train or Val is missing or contains a folder that is not an emotion."""
    check_root(root, "pass the folder that contains Train and Val as --root")
    skipped = Skipped()
    trees = {name.lower(): find_emotions(root / name) for name in subfolders(root, skipped)}
    train, val, test = (trees.get(name) for name in ("train", "val", "test"))
    if train is None or val is None:
        raise UserError(
            f"{root}: expected Train and Val, each with folders {', '.join(CLASSES)}, "
            f"but found {', '.join(subfolders(root)) or 'no folders'}"
        )
    splits = {"train": train, "test": val} if test is None else {"train": train, "validation": val, "test": test}
    images, others = [], 0
    for split, tree in splits.items():
        for name in subfolders(tree, skipped):
            label = find_label(name, CLASSES)
            if label is None:
                raise UserError(
                    f"{escape_name(str(tree / name))}: folder is not one of {', '.join(CLASSES)}; rename or remove it"
                )
            for path in list_files(root, (tree / name).relative_to(root).as_posix(), skipped):
                if is_image_name(path):
                    images.append(ImageEntry(path, split, label))
                else:
                    others += 1
    layout = "Train and Val, which is test" if test is None else "Train, Val and a labeled Test"
    return SourceListing("sfew", CLASSES, images, layout, {"other_files": others, **count_skipped(skipped)})


def find_emotions(folder: Path) -> Path | None:
    """Return the folder itself or its subfolder that contains the emotion folders, or None if there is none."""
    for candidate in (folder, *(folder / name for name in subfolders(folder))):
        if sum(find_label(name, CLASSES) is not None for name in subfolders(candidate)) >= 2:
            return candidate
    return None


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder with Train and Val")
    add_image_arguments(parser, {"validation": "0.1 if Val becomes test"})
    add_align_arguments(parser)


def open_source(args: argparse.Namespace) -> Source:
    listing = list_sfew(args.root)
    return make_source(listing, read_image_options(args, fractions_to_hold_out(args, listing.splits)), args)
