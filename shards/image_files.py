"""Shared by all sources of image files: image list, leaks, held-out splits and loading."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

from adadf_dist.data.build.builder import MAX_KEY_LENGTH
from adadf_dist.data.build.folder_tree import Skipped, walk_files
from adadf_dist.data.build.source import Provenance, SourceItem
from adadf_dist.data.build.writer import Sample
from adadf_dist.data.jpeg import Box, InvalidImageError, to_jpeg
from adadf_dist.errors import UserError
from adadf_dist.files.text import escape_name, native_name, plain_form
from shards.duplicates import assign_splits, digest
from shards.progress import track
from shards.sources.class_names import class_name_warnings

DIGEST_EDGE_BYTES = 2**16
"""Long files are compared by this many bytes at either end, so that a release of photos need not be read twice."""

Facts: TypeAlias = Callable[[int], Mapping[str, object]]
"""Annotations of an image, read when it is stored; `box` (left, top, right, bottom) may be cropped.

Pickled into worker processes. Raises `InvalidImageError`."""


class ImageEntry(NamedTuple):
    """One image file of the tree."""

    path: str
    """Relative to the root, with `/`, as `open` expects it."""
    split: str
    label: int
    votes: tuple[float, ...] | None = None
    """Annotators per class, or their fractions."""


@dataclass(frozen=True)
class ImageSourceOptions:
    """Options that determine the content of an image dataset, whatever its source."""

    root: Path
    fractions: Mapping[str, float]
    """Fraction of each class to hold out from train, by split."""
    image_size: int | None = None
    """Maximum shorter side in pixels; larger images are downscaled."""
    margin: float | None = None
    """Margin around an annotated box, as a fraction of its sides; None: the complete image."""
    seed: int = 0
    keep_leaks: bool = False


@dataclass(frozen=True)
class SourceListing:
    """Images of a source, and their provenance."""

    name: str
    classes: tuple[str, ...]
    pictures: Sequence[ImageEntry]
    layout: str
    """Published layout that was recognized, for messages."""
    findings: Mapping[str, object] = field(default_factory=dict)
    facts: Facts | None = None


@dataclass(frozen=True)
class ImageFileSource:
    """A `Source`; sample numbers are indices into the list of images."""

    options: ImageSourceOptions
    listing: SourceListing
    keys: Sequence[str]
    splits: Mapping[int, str]
    image_bytes: int
    provenance: Provenance
    marks: Sequence[bytes] = ()
    """Digest of each image file."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.listing.classes

    def items(self) -> Sequence[SourceItem]:
        return [SourceItem(split, self.keys[number], number) for number, split in self.splits.items()]

    def describe_item(self, number: int) -> str:
        return escape_name(self.listing.pictures[number].path)

    def label(self, number: int) -> int:
        return self.listing.pictures[number].label

    def fingerprint(self, number: int) -> bytes:
        picture = self.listing.pictures[number]
        try:
            facts: object = self.facts(number)
        except InvalidImageError as error:
            facts = str(error)
        return self.marks[number] + repr((picture.label, picture.votes, facts)).encode()

    def load(self, number: int) -> Sample:
        picture = self.listing.pictures[number]
        facts = self.facts(number)
        data, _ = read_bytes(f"{self.options.root}/{picture.path}")
        image = to_jpeg(data, self.options.image_size, self.cut_out(facts))
        return Sample(image, picture.label, picture.votes, None, self.describe_item(number), facts)

    def facts(self, number: int) -> Mapping[str, object]:
        """Annotations of an image besides its label. Raises `InvalidImageError`."""
        return {} if self.listing.facts is None else self.listing.facts(number)

    def cut_out(self, facts: Mapping[str, object]) -> Box | None:
        """Part of the image to store; None for all of it."""
        box, margin = facts.get("box"), self.options.margin
        if margin is None or not isinstance(box, Sequence):
            return None
        left, top, right, bottom = box
        more_x, more_y = margin * (right - left), margin * (bottom - top)
        return Box(round(left - more_x), round(top - more_y), round(right + more_x), round(bottom + more_y))


def make_image_source(listing: SourceListing, options: ImageSourceOptions) -> ImageFileSource:
    """Digest every file, drop leaks, hold out splits, create keys. Raises `UserError`."""
    pictures, classes = listing.pictures, listing.classes
    check_classes(listing, options.root)
    labels = [picture.label for picture in pictures]
    marks, sizes = digest_all(pictures, options.root)
    stamps = [  # the middle of a long file was not read
        mark + modified(f"{options.root}/{picture.path}") if size > 2 * DIGEST_EDGE_BYTES else mark
        for picture, mark, size in zip(pictures, marks, sizes, strict=True)
    ]
    splits = {number: picture.split for number, picture in enumerate(pictures)}
    parting = assign_splits(splits, marks, labels, options.fractions, options.seed, options.keep_leaks)
    leaks = parting.table(lambda number: escape_name(pictures[number].path), labels, classes)
    provenance = Provenance(
        source=listing.name,
        options={
            "layout": listing.layout,
            **options.fractions,
            "image_size": options.image_size,
            "margin": options.margin,
            "keep_leaks": options.keep_leaks,
        },
        findings={"pictures": len(pictures), **listing.findings, **parting.findings()},
        tables={"leaks.csv": leaks} if leaks.lines else {},
    )
    most = float("inf") if options.image_size is None else options.image_size**2
    need = round(sum(min(sizes[number], most) for number in parting.splits))
    keys = make_keys([picture.path for picture in pictures])
    return ImageFileSource(options, listing, keys, dict(parting.splits), need, provenance, stamps)


def digest_all(pictures: Sequence[ImageEntry], root: Path) -> tuple[list[bytes], list[int]]:
    """Return the digest and size of every file. Raises `UserError` if none can be read."""
    marks, sizes, problem, unreadable = [], [], "", 0
    for picture in track(pictures, "finding duplicates", len(pictures)):
        path = f"{root}/{picture.path}"
        try:
            ends, size = read_bytes(path, DIGEST_EDGE_BYTES)
            mark = digest(size.to_bytes(8, "big") + ends)
        except InvalidImageError as error:  # not a duplicate; quarantined later
            mark, size = digest(os.fsencode(path)), 0
            problem, unreadable = problem or f"{escape_name(picture.path)} {error}", unreadable + 1
        marks.append(mark)
        sizes.append(size)
    if pictures and unreadable == len(pictures):
        raise UserError(f"{root}: none of the {unreadable:,} images can be read (first: {problem}); check --root")
    return marks, sizes


def check_classes(listing: SourceListing, root: Path) -> None:
    """Raise `UserError` for a single class or a class without training images. Warns about unusual names."""
    if len(listing.classes) < 2:
        raise UserError(
            f"{root}: contains only class {', '.join(listing.classes)}; at least two are needed. Is this the folder of "
            "the class folders, or the right column of the list?"
        )
    for warning in class_name_warnings(listing.classes):
        print(f"{root}: warning: {warning}", file=sys.stderr)
    counts = Counter(picture.label for picture in listing.pictures if picture.split == "train")
    for label, name in enumerate(listing.classes):
        if not counts[label]:
            raise UserError(f"{root}: class {name} has no training images; add some or leave the class out")


def read_bytes(path: str, limit: int | None = None) -> tuple[bytes, int]:
    """Return a file's content and size; if longer than 2 `limit` bytes, only the first and last `limit` bytes.

    Raises `InvalidImageError`, so that an unreadable file is handled like any invalid image.
    """
    try:
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if limit is None or size <= 2 * limit:
                return stream.read(), size
            head = stream.read(limit)
            stream.seek(-limit, os.SEEK_END)
            return head + stream.read(), size
    except OSError as error:
        raise InvalidImageError(f"cannot be read: {error.strerror}{similar_name(path)}") from None
    except ValueError as error:  # a NUL in the path
        raise InvalidImageError(f"cannot be read: {error}") from None


def similar_name(path: str) -> str:
    """`; the folder has IMG.JPG`: the file probably meant, if names differ only in letter case or accents."""
    folder, name = os.path.split(path)
    found = names_by_form(folder).get(plain_form(name))
    return f"; the folder has {escape_name(found)}" if found is not None and found != name else ""


@lru_cache(maxsize=64)
def names_by_form(folder: str) -> Mapping[str, str]:
    """File names in a folder by normalized form; empty if the folder is unreadable."""
    try:
        return {plain_form(name): name for name in sorted(os.listdir(folder))}
    except OSError:
        return {}


def modified(path: str) -> bytes:
    """Modification time of a file; empty if unreadable."""
    try:
        return str(os.stat(path).st_mtime_ns).encode()
    except OSError:
        return b""


def list_files(root: Path, below: str, skipped: Skipped) -> list[str]:
    """Return all files under `root/below`, relative to the root, without system files. Raises `UserError`."""
    return [os.path.relpath(path, root) for path in walk_files(root / below, skipped)]


def skipped_findings(skipped: Skipped) -> dict[str, object]:
    """Return what the walk skipped as findings, and print it."""
    if not skipped.kinds:
        return {}
    print(f"note: {skipped.describe()}", file=sys.stderr)
    return {"skipped": skipped.counts()}


def check_relative_path(path: str, where: str, root: Path | None = None) -> str:
    """Return the path relative to the root, as `open` expects it. Raises `UserError` naming `where` it is.

    Windows backslashes become `/`, and an absolute path under the root becomes relative.
    """
    plain = native_name(path)
    if "\\" in plain and not (root is not None and (root / plain).exists()):
        plain = plain.replace("\\", "/")
    if root is not None and plain.startswith("/"):
        for base in (os.path.abspath(root), os.path.realpath(root)):
            plain = plain.removeprefix(base.rstrip("/") + "/")
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    if not parts or plain.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:$", parts[0]) or "\0" in plain:
        raise UserError(f"{where}: path {path!r} is outside the folder; use a relative path with /")
    return "/".join(parts)


def make_keys(paths: Sequence[str]) -> list[str]:
    """Make a key per path: plain characters, only the end of a long path, a number for duplicates."""
    keys: list[str] = []
    taken: set[str] = set()
    for path in paths:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", path.rpartition(".")[0]).strip("-")[-(MAX_KEY_LENGTH - 10) :]
        key, count = stem, 1
        while key in taken or not key:
            count += 1
            key = f"{stem}-{count}"
        taken.add(key)
        keys.append(key)
    return keys


def add_photo_arguments(parser: argparse._ArgumentGroup, carved: Mapping[str, str]) -> None:
    """`carved`: for each split that may be held out from train, the default as shown in the help text."""
    for split, default in carved.items():
        parser.add_argument(
            f"--{split}-fraction",
            type=float,
            metavar="F",
            help=f"fraction of each class to hold out from train for {split} (default: {default})",
        )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="N",
        help="downscale larger images to shorter side N pixels (default: off)",
    )
    parser.add_argument("--keep-leaks", action="store_true", help="list leaks but keep them (as in published results)")


def photo_options(
    args: argparse.Namespace, fractions: Mapping[str, float], image_size: int | None = None, margin: float | None = None
) -> ImageSourceOptions:
    """Options from the command line. `image_size` is the default. Raises `UserError`."""
    side = args.image_size if args.image_size is not None else image_size
    if side is not None and side < 16:
        raise UserError(f"--image-size {side}: must be at least 16 pixels")
    return ImageSourceOptions(args.root, fractions, side, margin, args.seed, args.keep_leaks)


def carve_validation(args: argparse.Namespace, present: bool) -> dict[str, float]:
    """Fraction of train to hold out for validation. Raises `UserError`."""
    fraction = args.validation_fraction
    if fraction is not None and present:
        raise UserError("--validation-fraction: the source already has a validation split; remove the option")
    if fraction is not None and not 0 <= fraction < 1:
        raise UserError(f"--validation-fraction {fraction:g}: must be at least 0 and below 1")
    share = 0.0 if present else 0.1 if fraction is None else fraction
    return {"validation": share} if share else {}
