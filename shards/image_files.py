"""Code shared by all sources of image files: listing and loading images, dropping leaks and holding out splits."""

from __future__ import annotations

import argparse
import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

from adadf_dist.console.logs import NO_PREFIX, get_logger
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

logger = get_logger(__name__)

DIGEST_EDGE_BYTES = 2**16
"""Number of bytes hashed at each end of a large file, so that large photos need not be read completely."""

ReadAnnotations: TypeAlias = Callable[[int], Mapping[str, object]]
"""Picklable function that maps an image number to annotations, such as the `box` (left, top, right, bottom).

Raises `InvalidImageError` if the annotations are invalid.
"""


def no_annotations(number: int) -> Mapping[str, object]:
    return {}


class ImageEntry(NamedTuple):
    """One image file of a source, with its split and label."""

    path: str
    """Path relative to the root, with `/` as separator, spelled as in the file system."""
    split: str
    label: int
    votes: tuple[float, ...] | None = None
    """[C], number or fraction of annotators who chose each class."""


@dataclass(frozen=True)
class ImageSourceOptions:
    """Options, common to all sources of image files, that determine the content of the dataset."""

    root: Path
    fractions: Mapping[str, float]
    """For each split to hold out from train, the fraction of each class to hold out."""
    image_size: int | None = None
    """Maximum shorter side in pixels; larger images are downscaled."""
    margin: float | None = None
    """Margin around the annotated box, as a fraction of its sides; None keeps the complete image."""
    seed: int = 0
    keep_leaks: bool = False


@dataclass(frozen=True)
class SourceListing:
    """All images of a source, and how they were found."""

    name: str
    classes: tuple[str, ...]
    images: Sequence[ImageEntry]
    layout: str
    """Name of the recognized folder layout, for messages and `dataset.json`."""
    stats: Mapping[str, object] = field(default_factory=dict)
    annotations: ReadAnnotations = no_annotations

    @property
    def splits(self) -> set[str]:
        return {entry.split for entry in self.images}


@dataclass(frozen=True)
class ImageFileSource:
    """A `Source` of image files; sample numbers are indices into `listing.images`."""

    options: ImageSourceOptions
    listing: SourceListing
    keys: Sequence[str]
    splits: Mapping[int, str]
    image_bytes: int
    provenance: Provenance
    digests: Sequence[bytes]
    """Digest of each image file; for a large file, only both ends and the modification time are used."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.listing.classes

    def items(self) -> Sequence[SourceItem]:
        return [SourceItem(split, self.keys[number], number) for number, split in self.splits.items()]

    def describe_item(self, number: int) -> str:
        return escape_name(self.listing.images[number].path)

    def label(self, number: int) -> int:
        return self.listing.images[number].label

    def fingerprint(self, number: int) -> bytes:
        entry = self.listing.images[number]
        try:
            annotations: object = self.listing.annotations(number)
        except InvalidImageError as error:
            annotations = str(error)
        return self.digests[number] + repr((entry.label, entry.votes, annotations)).encode()

    def load(self, number: int) -> Sample:
        entry, annotations = self.listing.images[number], self.listing.annotations(number)
        image = to_jpeg(self.read(number), self.options.image_size, self.box_to_store(annotations))
        return Sample(image, entry.label, entry.votes, None, self.describe_item(number), annotations)

    def read(self, number: int) -> bytes:
        """Return the content of an image file. Raises `InvalidImageError` if it is unreadable."""
        return read_bytes(f"{self.options.root}/{self.listing.images[number].path}")[0]

    def box_to_store(self, annotations: Mapping[str, object]) -> Box | None:
        """Return the part of the image to store, or None to store the complete image."""
        box, margin = annotations.get("box"), self.options.margin
        if margin is None or not isinstance(box, Sequence):
            return None
        left, top, right, bottom = box
        more_x, more_y = margin * (right - left), margin * (bottom - top)
        return Box(round(left - more_x), round(top - more_y), round(right + more_x), round(bottom + more_y))


def make_image_source(listing: SourceListing, options: ImageSourceOptions) -> ImageFileSource:
    """Create a source from a listing: drop leaks, hold out splits and create keys.

    Raises `UserError` if a class has no training images, or if no image can be read.
    """
    images, classes = listing.images, listing.classes
    check_classes(listing, options.root)
    labels = [entry.label for entry in images]
    contents, sizes, times = zip(*digest_files(images, options.root), strict=True)
    splits = {number: entry.split for number, entry in enumerate(images)}
    assignment = assign_splits(splits, contents, labels, options.fractions, options.seed, options.keep_leaks)
    leaks = assignment.table(lambda number: escape_name(images[number].path), labels, classes)
    provenance = Provenance(
        source=listing.name,
        options={
            "layout": listing.layout,
            **options.fractions,
            "image_size": options.image_size,
            "margin": options.margin,
            "keep_leaks": options.keep_leaks,
        },
        stats={"images": len(images), **listing.stats, **assignment.stats()},
        tables={"leaks.csv": leaks} if leaks.lines else {},
    )
    max_bytes = float("inf") if options.image_size is None else options.image_size**2
    image_bytes = round(sum(min(sizes[number], max_bytes) for number in assignment.splits))
    digests = [content + time for content, time in zip(contents, times, strict=True)]
    return ImageFileSource(options, listing, make_keys(images), assignment.splits, image_bytes, provenance, digests)


def digest_files(images: Sequence[ImageEntry], root: Path) -> list[tuple[bytes, int, bytes]]:
    """Return the digest, size and modification time of every file. Raises `UserError` if no file can be read.

    The time is empty unless the file is so large that only its ends are digested.
    """
    files, problems = [], []
    for entry in track(images, "finding duplicates", len(images)):
        path = f"{root}/{entry.path}"
        try:
            ends, status = read_bytes(path, DIGEST_EDGE_BYTES)
        except InvalidImageError as error:  # not a duplicate; quarantined later
            files.append((digest(os.fsencode(path)), 0, b""))
            problems.append(f"{escape_name(entry.path)} {error}")
        else:
            size = status.st_size
            modified = str(status.st_mtime_ns).encode() if size > 2 * DIGEST_EDGE_BYTES else b""
            files.append((digest(size.to_bytes(8, "big") + ends), size, modified))
    if len(problems) == len(images):
        raise UserError(f"{root}: none of the {len(images):,} images can be read (first: {problems[0]}); check --root")
    return files


def check_classes(listing: SourceListing, root: Path) -> None:
    """Raise `UserError` if there is only one class or a class has no training images, and warn about unusual names."""
    if len(listing.classes) < 2:
        raise UserError(
            f"{root}: contains only class {', '.join(listing.classes)}, but at least two are needed; check that --root "
            "contains the class folders, or that the CSV file's label column contains the classes"
        )
    for warning in class_name_warnings(listing.classes):
        logger.warning(f"{root}: warning: {warning}", extra=NO_PREFIX)
    labels = {entry.label for entry in listing.images if entry.split == "train"}
    for label, name in enumerate(listing.classes):
        if label not in labels:
            raise UserError(f"{root}: class {name} has no training images; add some or remove the class")


def read_bytes(path: str, limit: int | None = None) -> tuple[bytes, os.stat_result]:
    """Return a file's content and status; for a file longer than 2 * `limit` bytes, only the first and last `limit`.

    Raises `InvalidImageError` if the file is unreadable, so that it is handled like any other invalid image.
    """
    try:
        with open(path, "rb") as stream:
            status = os.fstat(stream.fileno())
            if limit is None or status.st_size <= 2 * limit:
                return stream.read(), status
            head = stream.read(limit)
            stream.seek(-limit, os.SEEK_END)
            return head + stream.read(), status
    except OSError as error:
        raise InvalidImageError(f"cannot be read: {error.strerror}{suggest_name(path)}") from None
    except ValueError as error:  # a NUL in the path
        raise InvalidImageError(f"cannot be read: {error}") from None


def suggest_name(path: str) -> str:
    """Return a hint such as `; the folder has IMG.JPG`, or an empty string.

    The hint names a file whose name differs from the requested one only in case or Unicode form.
    """
    folder, name = os.path.split(path)
    found = index_names(folder).get(plain_form(name))
    return f"; the folder has {escape_name(found)}" if found is not None and found != name else ""


@lru_cache(maxsize=64)
def index_names(folder: str) -> Mapping[str, str]:
    """Return a folder's file names, keyed by their normalized form. Empty if the folder is unreadable."""
    try:
        return {plain_form(name): name for name in sorted(os.listdir(folder))}
    except OSError:
        return {}


def list_files(root: Path, below: str, skipped: Skipped) -> list[str]:
    """Return the paths of all files under `root/below`, relative to `root`; system files are skipped.

    Raises `UserError` if a folder is unreadable.
    """
    return [os.path.relpath(path, root) for path in walk_files(root / below, skipped)]


def count_skipped(skipped: Skipped) -> dict[str, object]:
    """Log the files and folders that were skipped, and return their counts for `dataset.json`."""
    if not skipped.kinds:
        return {}
    logger.info(f"note: {skipped.describe()}")
    return {"skipped": skipped.counts()}


def check_relative_path(path: str, where: str, root: Path | None = None) -> str:
    """Return a listed path in its normal form: relative to the root, with `/` as separator.

    Windows backslashes become `/`, and an absolute path under the root becomes relative. Raises `UserError` if the path
    is outside the root; the message starts with `where`, the location of the path in a list.
    """
    plain = native_name(path)
    if "\\" in plain and not (root is not None and (root / plain).exists()):
        plain = plain.replace("\\", "/")
    if root is not None and plain.startswith("/"):
        for base in (os.path.abspath(root), os.path.realpath(root)):
            plain = plain.removeprefix(base.rstrip("/") + "/")
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    if not parts or plain.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:$", parts[0]) or "\0" in plain:
        raise UserError(f"{where}: path {path!r} is outside the folder; use a relative path with / as separator")
    return "/".join(parts)


def make_keys(images: Sequence[ImageEntry]) -> list[str]:
    """Return a unique key for each image, derived from its path.

    Special characters become `-`, a long path is cut at the start, and a number makes equal keys unique.
    """
    keys: dict[str, ImageEntry] = {}
    for entry in images:
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", entry.path.rpartition(".")[0]).strip("-")[-(MAX_KEY_LENGTH - 10) :]
        numbered = (f"{stem}-{count}" for count in itertools.count(2))
        key = stem
        while key in keys or not key:
            key = next(numbered)
        keys[key] = entry
    return list(keys)


def add_image_arguments(parser: argparse._ArgumentGroup, held_out: Mapping[str, str]) -> None:
    """Add the options common to all image sources.

    `held_out` maps each split to its default fraction, as shown in the help text.
    """
    for split, default in held_out.items():
        parser.add_argument(
            f"--{split}-fraction",
            type=float,
            metavar="F",
            help=f"fraction of each class to hold out from train for {split} (default: {default})",
        )
    parser.add_argument(
        "--max-side",
        type=int,
        metavar="N",
        help="downscale larger images so that their shorter side is N pixels (default: off)",
    )
    parser.add_argument(
        "--keep-leaks",
        action="store_true",
        help="keep leaks, as in published results, but still list them in leaks.csv",
    )


def read_image_options(
    args: argparse.Namespace, fractions: Mapping[str, float], image_size: int | None = None, margin: float | None = None
) -> ImageSourceOptions:
    """Return the options given on the command line; `image_size` is the default of `--max-side`.

    Raises `UserError` if the maximum side is too small.
    """
    side = args.max_side if args.max_side is not None else image_size
    if side is not None and side < 16:
        raise UserError(f"--max-side {side}: must be at least 16 pixels")
    return ImageSourceOptions(args.root, fractions, side, margin, args.seed, args.keep_leaks)
