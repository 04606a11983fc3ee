"""Sample images by key, from the dataset folder if it is available locally."""

from __future__ import annotations

from pathlib import Path

from adadf_dist.data.dataset import Dataset, Split, open_dataset
from adadf_dist.data.identity import Source, how_to_fix, other_data
from adadf_dist.data.jpeg import InvalidImageError, thumbnail_url
from adadf_dist.data.remote.client import is_remote, local_path
from adadf_dist.errors import UserError
from adadf_dist.report.run_reader import RunData

SIDE = 112
"""Maximum side length of an embedded image in pixels; smaller images are embedded unchanged."""


class Thumbnails:
    """Images from a run's `data.shards`. If unavailable, `missing` gives the reason."""

    def __init__(self, run: RunData, shards: str = "", allow_other_data: bool = False) -> None:
        """Open the dataset.

        `shards`: Current location of the dataset; empty: as in the run. Raises `UserError` if the dataset is not that
        of the run, unless `allow_other_data`.
        """
        shards = shards or run.config.data.shards
        self.missing = ""
        self.other_data = ""
        """How the dataset differs from that of the run, if allowed."""
        self._dataset: Dataset | None = None
        self._splits: dict[str, tuple[Split, dict[str, int]]] = {}
        if not shards or is_remote(shards):
            self.missing = f"no images: {shards or 'data.shards'} is not a local folder"
            return
        try:
            self._dataset = open_dataset(local_path(shards))
        except (UserError, OSError) as error:
            self.missing = f"no images: {error}" if Path(shards).exists() else f"no images: {shards} not found"
            return
        if run.source is not None:
            found = Source(shards, self._dataset.manifest.digests())
            self.other_data = other_data(run.source, found, found.digests)
        if self.other_data and not allow_other_data:
            raise UserError(f"{run.folder}: {self.other_data}; {how_to_fix('--shards DIR')}")

    def find(self, key: str, split: str) -> str | None:
        """Return an image as a data URL; None if unavailable. A validation sample may be stored in the train split."""
        for name in (split, "train"):
            if self._dataset is None or name not in self._dataset.splits:
                continue
            opened, places = self._open(self._dataset, name)
            if key in places:
                try:
                    return thumbnail_url(bytes(opened.read(places[key])), SIDE)
                except (InvalidImageError, OSError):
                    return None
        return None

    def _open(self, dataset: Dataset, name: str) -> tuple[Split, dict[str, int]]:
        if name not in self._splits:
            split = dataset.split(name)
            self._splits[name] = split, {str(key): number for number, key in enumerate(split.keys)}
        return self._splits[name]
