"""Find the input images in files, folders, dataset folders and paths on standard input, keeping their order."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple, NoReturn

from PIL import Image

from adadf_dist.data.build.folder_tree import Skipped, walk_files
from adadf_dist.data.dataset import Split, open_dataset
from adadf_dist.data.jpeg import InvalidImageError, decode_upright, image_suffixes, is_image_name
from adadf_dist.data.loaders.base import decode_image
from adadf_dist.data.manifest import MANIFEST
from adadf_dist.errors import UserError, single_line
from adadf_dist.files.text import decode_lines, escape_name, native_name

STDIN = "-"


class ImageInput(NamedTuple):
    """Input image, loaded lazily."""

    name: str
    """Value of the `path` column: a file path, or SPLIT/KEY for a sample of a dataset."""
    load: Callable[[], Image.Image]
    """Returns the image upright, in grayscale or RGB. Raises `InvalidImageError` or `OSError`."""
    label: str | None = None
    """True class of a dataset sample, as named in the dataset; None for other images."""
    votes: Mapping[str, float] | None = None
    """Class -> number of annotators who chose it; None for a sample without votes."""


class Inputs(NamedTuple):
    images: Iterator[ImageInput]
    total: int | None
    """Number of images; None if paths come from standard input."""
    skipped: Skipped
    """Files that were skipped in folders. Files named on the command line are never skipped."""
    label_classes: tuple[str, ...]
    """Class names of all input datasets; empty if there are none."""
    vote_classes: tuple[str, ...]
    """Class names of the input datasets that have votes."""


class PathImages(NamedTuple):
    """Images found at one command-line path."""

    images: Iterable[ImageInput]
    total: int | None
    """Number of images; None if not known in advance."""
    split: Split | None = None
    """Split that the images are from, if the path is a dataset folder."""
    is_missing: bool = False
    """Whether the path does not exist or is a dataset folder that cannot be opened."""


def find_images(paths: Sequence[str], split: str | None) -> Inputs:
    """Find the images at all command-line paths. An unreadable path counts as an image that fails to load.

    Raises `UserError` if there is no image or a dataset lacks the split.
    """
    skipped = Skipped()
    sources = [open_path(path, split, skipped) for path in paths]
    splits = [source.split for source in sources if source.split is not None]
    if split is not None and not splits and not any(source.is_missing for source in sources):
        raise UserError(f"--split {split}: none of the paths is a dataset folder (a folder that contains {MANIFEST})")
    counts = [source.total for source in sources if source.total is not None]
    total = sum(counts) if len(counts) == len(sources) else None
    if total == 0:
        note = f"; {skipped.describe()}" if skipped.kinds else ""
        raise UserError(
            f"no images found in {', '.join(map(escape_name, paths))}; supported extensions: "
            f"{', '.join(sorted(image_suffixes()))}{note}"
        )
    return Inputs(
        images=chain.from_iterable(source.images for source in sources),
        total=total,
        skipped=skipped,
        label_classes=merge_classes(splits),
        vote_classes=merge_classes(split for split in splits if split.votes is not None),
    )


def merge_classes(splits: Iterable[Split]) -> tuple[str, ...]:
    """Return the distinct class names of all splits in order of first occurrence."""
    return tuple(dict.fromkeys(name for split in splits for name in split.classes))


def open_path(path: str, split: str | None, skipped: Skipped) -> PathImages:
    """Find the images at one command-line path. Raises `UserError` for a dataset without the split."""
    if path == STDIN:
        return PathImages(read_stdin_paths(), None)
    if os.path.isfile(os.path.join(path, MANIFEST)):
        return open_dataset_path(path, split)
    if os.path.isdir(path):
        images = list_folder(path, skipped)
        return PathImages(images, len(images))
    return PathImages([file_image(path)], 1, is_missing=not os.path.exists(path))


def list_folder(folder: str, skipped: Skipped) -> list[ImageInput]:
    """Return the images in a folder tree, sorted. An unreadable subfolder counts as an image that fails to load."""
    images: list[ImageInput] = []

    def add_unreadable(path: str, error: UserError) -> None:
        images.append(failed_image(path, str(error)))

    for path in walk_files(folder, skipped, add_unreadable):
        if is_image_name(path):
            images.append(file_image(path))
        else:
            skipped.add(path, "other files")
    return images


def read_stdin_paths() -> Iterator[ImageInput]:
    """Yield the image at each path on standard input as soon as its line arrives."""
    if sys.stdin is None:
        raise UserError("standard input is closed; cannot read image paths")
    # not sys.stdin: a thread blocked in it would delay program exit
    with open(sys.stdin.fileno(), "rb", closefd=False) as stream:
        for line in decode_lines(stream, "standard input", any_bytes=True):
            if path := line.rstrip("\n"):
                yield file_image(native_name(path))


def file_image(path: str) -> ImageInput:
    return ImageInput(path, partial(load_file, path))


def load_file(path: str) -> Image.Image:
    """Read an image file the same way as the dataset builder.

    Raises `InvalidImageError` or `OSError` if it cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read()
    if not data:
        raise InvalidImageError("empty file")
    return decode_upright(data)


def failed_image(path: str, reason: str) -> ImageInput:
    """Return a placeholder for an unreadable path; loading it raises `InvalidImageError` with the reason."""

    def load() -> NoReturn:
        raise InvalidImageError(reason.removeprefix(f"{escape_name(path)}: "))

    return ImageInput(path, load)


def open_dataset_path(path: str, name: str | None) -> PathImages:
    """Find the images of a dataset's split (default: test), in stored order. Raises `UserError` if it is missing."""
    try:
        dataset = open_dataset(path)
        if (name or "test") in dataset.splits:
            split = dataset.split(name or "test")
            return PathImages(stored_images(split), len(split), split)
    except (UserError, OSError) as error:
        reason = str(error) if isinstance(error, UserError) else single_line(error)
        return PathImages([failed_image(path, reason)], 1, is_missing=True)
    problem = f"no {name} split; available:" if name else "has no test split; pass one of its splits as --split:"
    raise UserError(f"{escape_name(path)}: {problem} {', '.join(dataset.splits)}")


def stored_images(split: Split) -> Iterator[ImageInput]:
    """Yield the samples of a split with their labels and votes, if any."""
    for sample, (key, label) in enumerate(zip(split.keys, split.labels.tolist(), strict=True)):
        votes = [] if split.votes is None else split.votes[sample].tolist()
        yield ImageInput(
            f"{split.name}/{key}",
            partial(load_sample, split, sample),
            split.classes[label],
            dict(zip(split.classes, votes, strict=True)) if any(votes) else None,
        )


def load_sample(split: Split, sample: int) -> Image.Image:
    return decode_image(split.read(sample))
