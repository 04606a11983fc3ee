"""Sample images, and the gallery of the selected model's most and least confident predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adadf_dist.data.dataset import Dataset, Split, open_dataset
from adadf_dist.data.identity import Source, how_to_fix, other_data
from adadf_dist.data.jpeg import InvalidImageError, thumbnail_url
from adadf_dist.data.remote.client import is_remote, local_path
from adadf_dist.errors import UserError
from adadf_dist.report.figures.tracked_sample import entropy
from adadf_dist.report.run_reader import RunData
from adadf_dist.tracking.artifacts import SavedPredictions

SIDE = 112
"""Maximum side length of an embedded image in pixels; smaller images are embedded unchanged."""
NUM_SHOWN = 14
"""Maximum number of samples in each section of the gallery."""


class Thumbnails:
    """Sample images from a run's dataset. If the dataset is unavailable, `missing` gives the reason."""

    def __init__(self, run: RunData, shards: str = "", allow_other_data: bool = False) -> None:
        """Open the dataset.

        `shards`: current location of the dataset; if empty, the location recorded in the run. Raises `UserError` if
        the dataset differs from the run's, unless `allow_other_data` is set.
        """
        shards = shards or run.config.data.shards
        self.missing = ""
        self.other_data = ""
        """How the dataset differs from the run's, if the user allowed it; empty if it does not differ."""
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
        """Return a sample's image as a data URL; None if it is unavailable.

        Also searches the train split, which contains the validation samples that a run held out.
        """
        for name in (split, "train"):
            if self._dataset is None or name not in self._dataset.splits:
                continue
            opened, indices = self._open(self._dataset, name)
            if key in indices:
                try:
                    return thumbnail_url(bytes(opened.read(indices[key])), SIDE)
                except (InvalidImageError, OSError):
                    return None
        return None

    def _open(self, dataset: Dataset, name: str) -> tuple[Split, dict[str, int]]:
        if name not in self._splits:
            split = dataset.split(name)
            self._splits[name] = split, {str(key): index for index, key in enumerate(split.keys)}
        return self._splits[name]


def gallery_sections(run: RunData, thumbnails: Thumbnails) -> list[tuple[str, list[dict[str, str | None]]]] | None:
    """Return the gallery's sections as (title, samples); None if the run has no validation predictions yet."""
    saved = run.predictions("validation")
    if saved is None:
        return None
    return [
        (title, [describe_sample(saved, int(index), thumbnails) for index in indices])
        for title, indices in most_and_least_confident(saved).items()
        if len(indices)
    ]


def most_and_least_confident(saved: SavedPredictions) -> dict[str, NDArray[np.int64]]:
    """Return the sample indices of each gallery section, by section title."""
    order = np.argsort(entropy(saved.answers.target_probs), kind="stable")
    errors = order[saved.answers.predicted_labels[order] != saved.faces.labels[order]]
    return {
        "Most confident": order[:NUM_SHOWN],
        "Least confident": order[::-1][:NUM_SHOWN],
        "Most confident errors": errors[:NUM_SHOWN],
    }


def describe_sample(saved: SavedPredictions, index: int, thumbnails: Thumbnails) -> dict[str, str | None]:
    classes, key = saved.faces.classes, str(saved.faces.keys[index])
    predicted = saved.answers.predicted_labels[index]
    votes = saved.faces.votes[index] if saved.faces.votes is not None else np.zeros(len(classes))
    most_votes = [c for c in np.argsort(-votes, kind="stable")[:3] if votes[c]]
    return {
        "key": key,
        "url": thumbnails.find(key, "validation"),
        "label": classes[saved.faces.labels[index]],
        "predicted": classes[predicted],
        "confidence": f"{saved.answers.target_probs[index, predicted]:.0%}",
        "votes": ", ".join(f"{classes[c]} {votes[c]:g}" for c in most_votes),
    }
