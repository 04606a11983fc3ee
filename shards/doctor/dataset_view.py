"""Uniform view of the dataset to check: a built dataset folder, or original data read by a `shards.build` source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from adadf_dist.console.logs import get_logger
from adadf_dist.data.build.folder_tree import is_system_name, list_entries, subfolders
from adadf_dist.data.build.source import Source
from adadf_dist.data.dataset import Dataset, Split, open_dataset
from adadf_dist.data.jpeg import is_image_name
from adadf_dist.data.manifest import MANIFEST, SPLITS
from adadf_dist.errors import UserError
from adadf_dist.files.text import escape_name, unescape_name
from shards.image_files import ImageSourceOptions, SourceListing, make_image_source
from shards.sources import affectnet, fer2013, folder, rafdb, sfew
from shards.sources.fer2013_csv import CSV_NAMES, find_csv
from shards.sources.splits import check_class_folders, split_names

logger = get_logger(__name__)

UNKNOWN = -1
"""Label of an unreadable sample."""


class StoredSample(NamedTuple):
    """An image and label, as stored in a dataset folder or as the builder would store them."""

    data: bytes
    """Bytes of the encoded image file."""
    label: int


class Faces(Protocol):
    """Interface for reading N samples by number (0 to N - 1). Instances are pickled for worker processes."""

    def read(self, number: int) -> StoredSample:
        """Return a sample's encoded image and label. Raises `InvalidImageError` if the image is unreadable."""

    def name(self, number: int) -> str:
        """Return the name of a sample for messages: its key in a dataset folder, otherwise its path or CSV row."""

    def file(self, number: int) -> Path | None:
        """Return the image file of a sample, or None if it is stored in a tar or CSV file."""


@dataclass(frozen=True, eq=False)
class DatasetView:
    """The dataset to check, with N samples."""

    path: Path
    kind: Literal["dataset folder", "original dataset"]
    """`dataset folder` if written by `shards.build`, or `original dataset` for the original files or a CSV list."""
    source: str
    """Name of the `shards.build` source that built or can read the data."""
    options: Mapping[str, object]
    """Options with which the source was opened."""
    stats: Mapping[str, object]
    """Counts recorded by the source, such as dropped, duplicate or ambiguous samples."""
    classes: tuple[str, ...]
    splits: tuple[str, ...]
    """Names of the splits that exist, in the order of `SPLITS`."""
    split_of: NDArray[np.int8]
    """[N], index into `splits` of each sample."""
    faces: Faces

    def __len__(self) -> int:
        return len(self.split_of)


@dataclass(frozen=True)
class StoredFaces:
    """Samples of a dataset folder, numbered consecutively across its splits."""

    splits: tuple[Split, ...]

    def place(self, number: int) -> tuple[Split, int]:
        for split in self.splits:
            if number < len(split):
                return split, number
            number -= len(split)
        raise IndexError(number)

    def read(self, number: int) -> StoredSample:
        split, sample = self.place(number)
        return StoredSample(bytes(split.read(sample)), int(split.labels[sample]))

    def name(self, number: int) -> str:
        split, sample = self.place(number)
        return str(split.keys[sample])

    def file(self, number: int) -> Path | None:
        return None


@dataclass(frozen=True)
class SourceFaces:
    """Samples read directly from an original dataset folder; `numbers` holds their indices in `source`."""

    source: Source
    root: Path
    numbers: Sequence[int]

    def read(self, number: int) -> StoredSample:
        sample = self.source.load(self.numbers[number])
        return StoredSample(sample.image.data, sample.label)

    def name(self, number: int) -> str:
        return self.source.describe_item(self.numbers[number])

    def file(self, number: int) -> Path | None:
        path = self.root / unescape_name(self.name(number))
        return path if path.is_file() else None


class RawTreeFormat(NamedTuple):
    """A known layout of an original dataset folder."""

    markers: str
    """Files or folders that identify the layout, for messages."""
    matches: Callable[[Path], bool]
    """Returns whether a folder has this layout."""
    open: Callable[[Path], Source]
    """Opens the folder as a source that keeps all samples, including leaks."""


def has_fer2013(root: Path) -> bool:
    return any((root / name).is_file() for name in CSV_NAMES)


def open_fer2013(root: Path) -> Source:
    csv = find_csv(root)
    return fer2013.read_fer2013(fer2013.Fer2013Options(csv, None, "fer", validation_fraction=0, keep_leaks=True))


def has_affectnet(root: Path) -> bool:
    """Return whether the folder is an AffectNet release.

    Class folders are not recognized here, because they could be any dataset; they are identified by their counts.
    """
    return any(all((root / marker).exists() for marker in layout.markers) for layout in affectnet.LAYOUTS[:2])


def has_rafdb(root: Path) -> bool:
    return any((root / below / rafdb.LABELS).is_file() for below in (".", "basic"))


def open_rafdb(root: Path) -> Source:
    images = "aligned" if any((root / b / rafdb.IMAGES["aligned"]).is_dir() for b in (".", "basic")) else "original"
    return unmodified_source(rafdb.list_rafdb(root, images), root)


def has_sfew(root: Path) -> bool:
    """Return whether the folder contains Train and Val with exactly SFEW's class folders."""
    names = {name.lower(): name for name in subfolders(root)}
    if not {"train", "val"} <= names.keys():
        return False
    trees = [sfew.find_emotions(root / names[split]) for split in ("train", "val")]
    return all(tree is not None and set(subfolders(tree)) == set(sfew.CLASSES) for tree in trees)


def has_class_folders(root: Path) -> bool:
    """Return whether the folder contains images in CLASS/ or SPLIT/CLASS/ folders."""
    splits = [root / name for name, split in split_names(subfolders(root)).items() if split is not None]
    return any(
        is_image_name(entry.name) and not is_system_name(entry.name)
        for top in splits or [root]
        for name in subfolders(top)
        for entry in list_entries(top / name)
    )


def unmodified_source(listing: SourceListing, root: Path, margin: float | None = None) -> Source:
    """Return a source that keeps every sample in its original split, including leaks."""
    return make_image_source(listing, ImageSourceOptions(root, {}, margin=margin, keep_leaks=True))


TREES: dict[str, RawTreeFormat] = {
    "fer2013": RawTreeFormat(" or ".join(CSV_NAMES[:2]), has_fer2013, open_fer2013),
    "affectnet": RawTreeFormat(
        "training.csv or train_set/",
        has_affectnet,
        lambda root: unmodified_source(affectnet.find_layout(root).read(root, affectnet.EXPRESSIONS), root, margin=0.0),
    ),
    "rafdb": RawTreeFormat(rafdb.LABELS, has_rafdb, open_rafdb),
    "sfew": RawTreeFormat(
        "Train/ and Val/ with emotion folders", has_sfew, lambda root: unmodified_source(sfew.list_sfew(root), root)
    ),
    "folder": RawTreeFormat(
        "CLASS/ or SPLIT/CLASS/ folders of images",
        has_class_folders,
        lambda root: unmodified_source(folder.list_folder(root), root),
    ),
}
"""Known layouts of original dataset folders by source name, in the order in which they are tried."""


def open_dataset_view(path: Path) -> DatasetView:
    """Open a dataset folder or an original dataset folder. Raises `UserError` if the path is neither."""
    if not path.exists():
        raise UserError(f"{path}: no such folder; pass a dataset folder or an original dataset folder")
    if not path.is_dir():
        raise UserError(f"{path}: is a file; pass the folder that contains it")
    if (path / MANIFEST).is_file():
        return open_stored(open_dataset(path))
    for name, tree in TREES.items():
        if tree.matches(path):
            return open_tree(path, name, tree.open(path))
    looked = "; ".join(f"{tree.markers} ({name})" for name, tree in TREES.items())
    check_class_folders(path, subfolders(path))
    entries = [escape_name(entry.name) + "/" * entry.is_dir() for entry in list_entries(path)]
    saw = ", ".join(entries[:6]) + (f" and {len(entries) - 6:,} more" if len(entries) > 6 else "")
    raise UserError(
        f"{path}: not a built dataset (no {MANIFEST}) and not the original folder of a supported dataset ({looked}); "
        f"it contains {saw or 'nothing'}. Pass the folder that contains {MANIFEST} or the original dataset's files"
    )


def open_stored(dataset: Dataset) -> DatasetView:
    splits = tuple(dataset.split(name) for name in dataset.splits)
    built = dataset.manifest.provenance
    options, stats = built.get("options"), built.get("stats")
    return DatasetView(
        path=dataset.folder,
        kind="dataset folder",
        source=str(built.get("source", "unknown")),
        options=options if isinstance(options, Mapping) else {},
        stats=stats if isinstance(stats, Mapping) else {},
        classes=dataset.classes,
        splits=tuple(split.name for split in splits),
        split_of=np.repeat(np.arange(len(splits), dtype=np.int8), [len(split) for split in splits]),
        faces=StoredFaces(splits),
    )


def open_tree(root: Path, name: str, source: Source) -> DatasetView:
    if others := source.provenance.stats.get("other_files"):
        logger.info(f"note: {others:,} other files skipped (no image extension)")
    items = sorted(source.items(), key=lambda item: (SPLITS.index(item.split), item.number))
    splits = tuple(split for split in SPLITS if any(item.split == split for item in items))
    return DatasetView(
        path=root,
        kind="original dataset",
        source=name,
        options=source.provenance.options,
        stats=source.provenance.stats,
        classes=source.classes,
        splits=splits,
        split_of=np.array([splits.index(item.split) for item in items], dtype=np.int8),
        faces=SourceFaces(source, root, [item.number for item in items]),
    )
