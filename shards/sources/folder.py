"""Reads any dataset that is stored as one folder per class."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from adadf_dist.console.logs import NO_PREFIX, get_logger
from adadf_dist.data.build.folder_tree import Skipped, check_root, is_archive, list_entries, readable_name, subfolders
from adadf_dist.data.build.source import Source
from adadf_dist.data.jpeg import FORMATS, is_image_name
from adadf_dist.errors import UserError
from adadf_dist.files.text import escape_name, native_name, plain_form
from shards.alignment import add_align_arguments, make_source
from shards.image_files import (
    ImageEntry,
    SourceListing,
    add_image_arguments,
    count_skipped,
    list_files,
    read_image_options,
)
from shards.sources.splits import check_class_folders, count_images, fractions_to_hold_out, split_names

logger = get_logger(__name__)

HELP = "one folder per class, optionally inside train/, validation/ and test/"
DESCRIPTION = f"""\
Reads DIR/train/CLASS/*, DIR/validation/CLASS/* (or val, valid) and DIR/test/CLASS/*, or DIR/CLASS/*. The folder names
Training, PublicTest and PrivateTest have the same meaning as in FER2013. A missing split can be held out from train,
class by class. Classes are the sorted folder names; images may be in subfolders. Hidden files and files created by
operating systems and NAS devices (@eaDir, __MACOSX, Thumbs.db, ...) are skipped and counted.

images      JPEGs are stored unchanged; other formats ({", ".join(f for f in FORMATS if f != "JPEG")}), JPEGs with an
            EXIF rotation and JPEGs that are neither gray nor RGB are re-encoded at quality 95; files with other
            extensions are counted and ignored
leaks       training images with a byte-identical copy in validation or test (and validation images with one in test)
            are dropped and listed in leaks.csv; held-out splits keep copies together
"""
EPILOG = """\
examples:
  python -m shards.build folder --root faces --out data/faces --validation-fraction 0.1 --test-fraction 0.2
  python -m shards.build folder --root faces --out data/faces --max-side 256 --max-bad-images 3
"""


def list_folder(root: Path) -> SourceListing:
    """List every image in the class folders. Raises `UserError` if the folders do not have a supported layout."""
    skipped = Skipped()
    trees = find_splits(root, skipped)
    classes = find_classes(trees, skipped)
    images, others = [], 0
    for split, tree in trees.items():
        for label, name in enumerate(classes):
            folder = tree / native_name(name)
            for path in list_files(root, folder.relative_to(root).as_posix(), skipped) if folder.is_dir() else []:
                if is_image_name(path):
                    images.append(ImageEntry(path, split, label))
                else:
                    others += 1
    layout = "class folders below split folders" if root not in trees.values() else "class folders"
    outside = sum(count_images(folder) for folder in {root, *trees.values()})
    warn_of_archives({root, *trees.values()})
    stats = {
        "other_files": others,
        **({"images_outside_class_folders": outside} if outside else {}),
        **count_skipped(skipped),
    }
    return SourceListing("folder", classes, images, layout, stats)


def find_splits(root: Path, skipped: Skipped | None = None) -> dict[str, Path]:
    """Map each split to the folder that contains its class folders. Raises `UserError` if the layout is unsupported."""
    check_root(root, "pass the folder that contains the class folders as --root")
    folders = subfolders(root, skipped)
    if not folders:
        raise UserError(f"{root}: contains no folders; one folder per class is needed")
    splits = split_names(folders)
    if not any(splits.values()):
        check_class_folders(root, folders)
        return {"train": root}
    trees: dict[str, Path] = {}
    for name, split in splits.items():
        if split is None:
            raise UserError(f"{root / name}: not a split folder, but is next to split folders; move or rename it")
        if split in trees:
            raise UserError(f"{root}: contains both {trees[split].name} and {name} for the same split; keep one")
        trees[split] = root / name
    if "train" not in trees:
        raise UserError(
            f"{root}: contains {', '.join(folders)} but no train folder; add one, or pass the folder that contains the "
            "classes"
        )
    return trees


def find_classes(trees: dict[str, Path], skipped: Skipped) -> tuple[str, ...]:
    """Return the class names, which are the names of the folders in train.

    Raises `UserError` if there are none, or if another split has a class that train lacks.
    """
    train = trees["train"]
    classes = tuple(readable_name(train, name) for name in subfolders(train, skipped))
    if not classes:
        images = count_images(train)
        raise UserError(
            f"{train}: contains no folders; one folder per class is needed"
            + (f", but its {images:,} images are in no class folder" if images else "")
            + ("; for FER+'s folders use `python -m shards.build fer2013`" if images and has_list(train) else "")
        )
    for tree in trees.values():
        for name in subfolders(tree, skipped):
            if name not in map(native_name, classes):
                alike = [known for known in classes if plain_form(known) == plain_form(name)]
                hint = f" (train has {alike[0]})" if alike else ""
                raise UserError(f"{escape_name(str(tree / name))}: class is not in train{hint}; rename or remove it")
    return classes


def warn_of_archives(folders: Iterable[Path]) -> None:
    """Warn about archives next to the class or split folders, because images in archives are not read."""
    for folder in sorted(folders):
        if names := [escape_name(entry.name) for entry in list_entries(folder) if is_archive(entry.name)]:
            logger.warning(
                f"{escape_name(str(folder))}: warning: archives are not read: {', '.join(names)}; unpack any that "
                "belong to the dataset",
                extra=NO_PREFIX,
            )


def has_list(folder: Path) -> bool:
    """Return whether the folder contains a CSV file, as FER+'s image folders do."""
    return any(entry.name.lower().endswith(".csv") for entry in list_entries(folder))


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--root", type=Path, required=True, metavar="DIR", help="folder with the class or split folders"
    )
    add_image_arguments(parser, {"validation": "0.1 if there is no validation folder", "test": "none"})
    add_align_arguments(parser)


def open_source(args: argparse.Namespace) -> Source:
    options = read_image_options(args, fractions_to_hold_out(args, find_splits(args.root)))
    return make_source(list_folder(args.root), options, args)
