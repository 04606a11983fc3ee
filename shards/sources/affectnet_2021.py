"""Reads AffectNet's 2021 release: cropped faces, each with four small annotation files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adadf_dist.data.build.folder_tree import Skipped, file_names, list_entries
from adadf_dist.data.jpeg import InvalidImageError, is_image_name
from adadf_dist.errors import UserError
from shards.image_files import ImageEntry, SourceListing, count_skipped
from shards.progress import track

FOLDERS = {"train": "train_set", "test": "val_set"}


@dataclass(frozen=True)
class NpyAnnotations:
    """Reads an image's annotation files. Missing files are skipped because only `--align landmarks` needs any."""

    root: Path
    entries: Sequence[ImageEntry]

    def __call__(self, number: int) -> Mapping[str, object]:
        folder, _, file = self.entries[number].path.partition("/images/")
        stem = self.root / folder / "annotations" / file.rpartition(".")[0]
        found: dict[str, object] = {}
        if (landmarks := Path(f"{stem}_lnd.npy")).exists():
            points = read_numbers(landmarks)
            if points.size % 2:
                raise InvalidImageError(f"annotation {landmarks.name} has an odd number of coordinates ({points.size})")
            found["landmarks"] = points.reshape(-1, 2).tolist()
        for name, ending in (("valence", "val"), ("arousal", "aro")):
            if (annotation := Path(f"{stem}_{ending}.npy")).exists():
                found[name] = float(read_numbers(annotation)[0])
        return found


def list_release(root: Path, classes: Sequence[str]) -> SourceListing:
    """List every image whose expression is among `classes`.

    Raises `UserError` if a folder of the release is missing or a label is invalid.
    """
    entries, contempt, without_label, without_image, without_landmarks = [], 0, 0, 0, 0
    skipped = Skipped()
    for split, folder in FOLDERS.items():
        images, annotations = root / folder / "images", root / folder / "annotations"
        for required in (images, annotations):
            if not required.is_dir():
                raise UserError(f"{required}: no such folder; unpack AffectNet's 2021 release completely")
        files = file_names(images, skipped)
        annotated = {entry.name for entry in list_entries(annotations)}
        for name in track(files, f"reading the labels of {folder}", len(files)):
            stem = name.rpartition(".")[0]
            if not is_image_name(name) or f"{stem}_exp.npy" not in annotated:
                without_label += 1
                continue
            label = read_expression(annotations / f"{stem}_exp.npy")
            if label >= len(classes):
                contempt += 1
            else:
                entries.append(ImageEntry(f"{folder}/images/{name}", split, label))
                without_landmarks += f"{stem}_lnd.npy" not in annotated
        stems = {name.rpartition(".")[0] for name in files}
        without_image += sum(n.endswith("_exp.npy") and n.removesuffix("_exp.npy") not in stems for n in annotated)
    stats = {
        "contempt_left_out": contempt,
        "images_without_annotation": without_label,
        "annotations_without_image": without_image,
        **({"images_without_landmarks": without_landmarks} if without_landmarks else {}),
        **count_skipped(skipped),
    }
    return SourceListing("affectnet", tuple(classes), entries, "release of 2021", stats, NpyAnnotations(root, entries))


def read_expression(path: Path) -> int:
    """Read the label from a file. Raises `UserError` if it is invalid, because skipping it would change the splits."""
    try:
        value = read_numbers(path)[0]
    except InvalidImageError as error:
        raise UserError(f"{path}: {error}") from None
    if not (value == int(value) and 0 <= value <= 7):
        raise UserError(
            f"{path}: expression {value:g} must be a whole number from 0 to 7, as in AffectNet's 2021 release"
        )
    return int(value)


def read_numbers(path: Path) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return all numbers in a file as a flat array, converting numbers stored as text.

    Raises `InvalidImageError` if the file is unreadable or empty, or contains anything but finite numbers.
    """
    try:
        values = np.atleast_1d(np.load(path, allow_pickle=False)).astype(np.float64).ravel()
    except (OSError, ValueError, EOFError) as error:
        raise InvalidImageError(f"annotation {path.name} cannot be read ({type(error).__name__})") from None
    if not values.size or not np.isfinite(values).all():
        raise InvalidImageError(f"annotation {path.name} is empty or contains values that are not finite numbers")
    return values
