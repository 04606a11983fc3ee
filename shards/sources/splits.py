"""Recognizes split names and unsupported folder layouts, and reads the options for held-out splits."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from adadf_dist.data.build.folder_tree import list_entries, subfolders
from adadf_dist.data.emotions import SYNONYMS, plain_name
from adadf_dist.data.jpeg import is_image_name
from adadf_dist.errors import UserError
from adadf_dist.files.text import escape_name

_SPLIT = re.compile(
    r"(?:fer2013)?[ _-]*(train|training|val|valid|validation|validate|test|testing|public[ _-]?test|private[ _-]?test)"
    r"[ _-]*(?:set|split|data|images|faces)?",
    re.IGNORECASE,
)
_SPLITS = {"train": "train", "val": "validation", "test": "test", "private": "test"}


def split_names(words: Iterable[str]) -> dict[str, str | None]:
    """Map each name to the split that it stands for, or to None if it does not name a split.

    FER2013's PublicTest stands for test, or for validation if there is also a PrivateTest.
    """
    words = list(words)
    found = {word: match[1].lower() if (match := _SPLIT.fullmatch(word.strip())) else None for word in words}
    private = any(name is not None and name.startswith("private") for name in found.values())
    public = "validation" if private else "test"
    return {
        word: None
        if name is None
        else public
        if name.startswith("public")
        else next(split for start, split in _SPLITS.items() if name.startswith(start))
        for word, name in found.items()
    }


def fractions_to_hold_out(args: argparse.Namespace, present: Collection[str]) -> dict[str, float]:
    """Return the fraction of train to hold out for each split that is not already `present`.

    Raises `UserError` if an option is out of range or names an existing split, or if no training images would remain.
    """
    requested = {"test": getattr(args, "test_fraction", None), "validation": args.validation_fraction}
    for split, fraction in requested.items():
        if fraction is not None and split in present:
            raise UserError(f"--{split}-fraction: {args.root} already has that split; remove the option")
        if fraction is not None and not 0 <= fraction < 1:
            raise UserError(f"--{split}-fraction {fraction:g}: must be at least 0 and below 1")
    if args.validation_fraction is None and "validation" not in present:
        requested["validation"] = 0.1
    fractions = {split: fraction for split, fraction in requested.items() if fraction}
    if sum(fractions.values()) >= 1:
        raise UserError("--validation-fraction and --test-fraction leave no training images; their sum must be below 1")
    return fractions


def check_class_folders(root: Path, folders: Sequence[str]) -> None:
    """Raise `UserError`, with a suggested fix, if `folders` are not class folders but belong to another layout."""
    names = {name.lower() for name in folders}
    shown = escape_name(str(root))
    if names & {"images", "imgs", "jpegimages"} and names & {"labels", "annotations", "annotation", "label"}:
        raise UserError(
            f"{shown}: looks like a detection dataset (YOLO, VOC): it contains {', '.join(folders)} but no class "
            "folders; sort the images into one folder per class, or list them in a CSV file for "
            "`python -m shards.build csv`"
        )
    holders = {name: inner for name in folders if (inner := split_folders(root / name))}
    if len(holders) == len(folders) > 1 and not any(name.lower().startswith(("fold", "split")) for name in folders):
        first, inner = next(iter(holders.items()))
        raise UserError(
            f"{shown}: {escape_name(first)} contains {', '.join(inner)}, but split folders must contain the class "
            f"folders: {inner[0]}/{escape_name(first)}, not {escape_name(first)}/{inner[0]}"
        )
    for name, inner in holders.items():
        raise UserError(
            f"{shown}: {escape_name(name)} is not a class: it contains the splits {', '.join(inner)}; "
            f"pass --root {escape_name(str(root / name))}"
        )
    check_parts(root, folders)
    if len(folders) == 1 and len(inner := subfolders(root / folders[0])) > 1:
        raise UserError(
            f"{shown}: its only folder {escape_name(folders[0])} contains {', '.join(map(escape_name, inner[:8]))}; if "
            f"these are the classes, pass --root {escape_name(str(root / folders[0]))}"
        )


def check_parts(root: Path, folders: Sequence[str]) -> None:
    """Raise `UserError` if all folders contain the same emotion classes and so must be splits, not classes."""
    emotions = [{plain_name(name) for name in subfolders(root / folder)} & SYNONYMS.keys() for folder in folders]
    if len(folders) < 2 or any(plain_name(name) in SYNONYMS for name in folders):
        return
    if len(shared := set.intersection(*emotions)) > 1:
        raise UserError(
            f"{escape_name(str(root))}: {', '.join(map(escape_name, folders[:8]))} contain the same classes "
            f"({', '.join(sorted(shared))}), so they look like splits rather than classes; rename them to train, "
            "validation and test, or merge them"
        )


def split_folders(folder: Path) -> list[str]:
    """Return the subfolders named after splits if there are at least two or one is `train`, else an empty list."""
    found = {name: split for name, split in split_names(subfolders(folder)).items() if split is not None}
    return list(found) if len(found) > 1 or "train" in found.values() else []


def count_images(folder: Path) -> int:
    """Return the number of images directly in a folder, not counting subfolders."""
    return sum(is_image_name(entry.name) and not entry.name.startswith(".") for entry in list_entries(folder))
