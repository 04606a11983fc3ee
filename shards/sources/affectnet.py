"""Reads AffectNet in its known layouts: the 2017 release, the 2021 release, or class folders."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from adadf_dist.console.logs import get_logger
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
from shards.sources import affectnet_2017, affectnet_2021
from shards.sources.splits import fractions_to_hold_out, split_names

logger = get_logger(__name__)

EXPRESSIONS = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger", "contempt")
"""Expressions in the official label order; labels 8 to 10 (none, uncertain, no face) are not expressions."""
SIDE = 256
"""Default maximum shorter side, in pixels, of faces cropped from the photos of the 2017 release."""

HELP = "AffectNet: 2017 release (training.csv), 2021 release (train_set/), or class folders"
DESCRIPTION = f"""\
Detects the layout and prints it:

2017      DIR/training.csv and DIR/validation.csv, with images in numbered folders next to them or in
          Manually_Annotated_Images/. Photos are cropped to the annotated face box, with a shorter side of at most
          {SIDE} pixels (see --margin, --max-side, --no-crop). Expressions 8 to 10 are skipped and counted.
2021      DIR/train_set/images/N.jpg with annotations/N_exp.npy, N_aro.npy, N_val.npy, N_lnd.npy; same for DIR/val_set
folders   DIR/train/CLASS/*, DIR/val/CLASS/*, where CLASS is a number from 0 to 7 or a name

Labels are in the official order {", ".join(EXPRESSIONS)};
--classes 7 drops contempt, as in the paper.

splits    Since the test labels were never published, results are reported on the published validation set. It becomes
          test here, and validation is held out from train. Class folders that have both val and test keep both.
KEY.json  valence, arousal, landmarks and (2017) the face box, in pixels of the published image
"""
EPILOG = """\
examples:
  python -m shards.build affectnet --root AffectNet --out data/affectnet7 --classes 7
  python -m shards.build affectnet --root AffectNet --out data/affectnet8 --align landmarks --max-bad-images 100
"""


class Layout(NamedTuple):
    """A known layout of the dataset."""

    title: str
    markers: Sequence[str]
    """Paths, relative to the root, that all exist in this layout."""
    read: Callable[[Path, Sequence[str]], SourceListing]
    """Function that lists the images of the given classes under a root folder."""


def list_folders(root: Path, classes: Sequence[str]) -> SourceListing:
    """List the images of `classes` in the class folders of every split folder.

    Raises `UserError` if a class folder is not named after an AffectNet expression.
    """
    skipped = Skipped()
    splits = split_names(subfolders(root, skipped))
    found = {split: root / name for name, split in splits.items() if split is not None}
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")
    images, others, contempt = [], 0, 0
    for split, tree in found.items():
        for name in subfolders(tree, skipped):
            label = find_label(name, EXPRESSIONS)
            if label is None:
                where = escape_name(str(tree / name))
                raise UserError(f"{where}: not a number or name of an AffectNet expression; rename or remove it")
            for path in list_files(root, (tree / name).relative_to(root).as_posix(), skipped):
                if label >= len(classes):
                    contempt += 1
                elif is_image_name(path):
                    images.append(ImageEntry(path, split, label))
                else:
                    others += 1
    stats = {"other_files": others, "contempt_left_out": contempt, **count_skipped(skipped)}
    return SourceListing("affectnet", tuple(classes), images, "folders of classes", stats)


LAYOUTS = (
    Layout("release of 2017", ("training.csv",), affectnet_2017.list_release),
    Layout("release of 2021", ("train_set/images", "train_set/annotations"), affectnet_2021.list_release),
    Layout("folders of classes", ("train",), list_folders),
)


def find_layout(root: Path) -> Layout:
    """Return the layout of the folder. Raises `UserError`, listing what was expected and found, if it is unknown."""
    check_root(root, "pass AffectNet's folder as --root")
    for layout in LAYOUTS:
        if all((root / marker).exists() for marker in layout.markers):
            return layout
    expected = " or ".join(" and ".join(layout.markers) for layout in LAYOUTS)
    found = ", ".join(sorted(entry.name for entry in root.iterdir())[:8]) or "nothing"
    raise UserError(
        f"{root}: expected {expected}, but found {found}; pass the folder that contains one of these layouts as --root"
    )


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="AffectNet's folder")
    parser.add_argument(
        "--classes",
        type=int,
        choices=(7, 8),
        default=8,
        help="number of classes; 7 drops contempt (default: %(default)s)",
    )
    parser.add_argument(
        "--margin",
        type=float,
        default=0.0,
        metavar="F",
        help="2017 release: margin around the face box, as a fraction of its sides (default: %(default)s)",
    )
    parser.add_argument("--no-crop", action="store_true", help="2017 release: store the uncropped photos")
    add_image_arguments(parser, {"validation": "0.1 if the published validation set becomes test"})
    add_align_arguments(parser)


def open_source(args: argparse.Namespace) -> Source:
    if not 0 <= args.margin <= 2:
        raise UserError(f"--margin {args.margin:g}: must be from 0 to 2")
    if args.align != "none" and (args.margin or args.no_crop):
        raise UserError("--margin and --no-crop are not allowed with --align, which crops the face itself")
    layout = find_layout(args.root)
    logger.info(f"{args.root}: AffectNet, {layout.title}")
    listing = layout.read(args.root, EXPRESSIONS[: args.classes])
    if args.align == "landmarks" and listing.stats.get("images_without_landmarks") == len(listing.images) > 0:
        raise UserError(f"{args.root}: no image has landmarks (N_lnd.npy); use --align detect")
    fractions = fractions_to_hold_out(args, listing.splits)
    boxed = layout is LAYOUTS[0] and not args.no_crop
    options = read_image_options(args, fractions, SIDE if boxed else None, args.margin if boxed else None)
    return make_source(listing, options, args)
