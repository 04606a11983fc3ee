"""Per-sample files of a run folder, read by the report, the audit and user scripts.

samples.npz               training samples: keys, labels used in training, labels of the dataset, annotator votes
history/epoch-NNNN.npz    sample history of one epoch, written by `tracking/sample_history.py`
predictions-SPLIT.npz     the selected model's predictions on validation, and on test once the run has tested it
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adadf_dist.data.dataset import Split
from adadf_dist.data.label_noise import LabelNoise
from adadf_dist.errors import UserError
from adadf_dist.files.old_formats import RENAMED_FIELDS, find_file
from adadf_dist.metrics.predictions import Predictions
from adadf_dist.tracking.sample_history import write_arrays

SAMPLES_FILE = "samples.npz"
MAX_FEATURE_SAMPLES = 2000
"""Maximum number of samples per split whose features are saved, for the t-SNE plot."""


class SampleTable(NamedTuple):
    """Keys, labels and votes of the S samples of a split, in the order of the split."""

    classes: tuple[str, ...]
    keys: NDArray[np.str_]
    """[S], key of each sample."""
    labels: NDArray[np.int64]
    """[S], labels used in training."""
    true_labels: NDArray[np.int64]
    """[S], the dataset's own labels; they differ from `labels` only if label noise was added."""
    votes: NDArray[np.float32] | None
    """[S, C], number of annotator votes for each class; None if the dataset has no votes."""


class SavedPredictions(NamedTuple):
    """Predictions and features of the selected model on a split."""

    faces: SampleTable
    answers: Predictions
    featured: NDArray[np.int64]
    """[M], indices of the samples whose features are saved, evenly spaced over the split."""
    features: NDArray[np.float32]
    """[M, F], features that the target branch's classifier receives; stored as float16."""


def save_samples(folder: Path, split: Split, noise: LabelNoise | None) -> None:
    """Write `samples.npz` for a training split. Raises `UserError` if the file cannot be written."""
    true = split.labels if noise is None else noise.true
    write_arrays(
        folder / SAMPLES_FILE,
        to_columns(SampleTable(split.classes, sample_keys(split), split.labels, true, split.votes)),
    )


def load_samples(folder: Path) -> SampleTable:
    """Read `samples.npz`. Raises `UserError` if it is missing or corrupt."""
    return from_columns(load_npz(find_file(folder, SAMPLES_FILE)))


def save_predictions(folder: Path, split: Split, predictions: Predictions, features: NDArray[np.float32]) -> None:
    """Write the selected model's predictions on a split, and the features [M, F] of the samples in `feature_subset`.

    Raises `UserError` if this fails.
    """
    samples = SampleTable(split.classes, sample_keys(split), split.labels, split.labels, split.votes)
    arrays = {**to_columns(samples), **predictions._asdict(), "featured": feature_subset(len(split))}
    arrays["features"] = features.astype(np.float16)
    write_arrays(folder / f"predictions-{split.name}.npz", arrays)


def load_predictions(folder: Path, split: str) -> SavedPredictions:
    """Read `predictions-SPLIT.npz`. Raises `UserError` if it is missing or corrupt."""
    arrays = load_npz(find_file(folder, f"predictions-{split}.npz"))
    predictions = Predictions(**{name: arrays[name] for name in Predictions._fields})
    features = arrays["features"].astype(np.float32)
    return SavedPredictions(from_columns(arrays), predictions, arrays["featured"], features)


def feature_subset(samples: int) -> NDArray[np.int64]:
    """Return at most `MAX_FEATURE_SAMPLES` evenly spaced sample indices; splits are stored in shuffled order."""
    return np.unique(np.linspace(0, samples - 1, min(samples, MAX_FEATURE_SAMPLES)).round().astype(np.int64))


def sample_keys(split: Split) -> NDArray[np.str_]:
    return np.array(split.keys.tolist(), dtype=np.str_)


def to_columns(samples: SampleTable) -> dict[str, NDArray[Any]]:
    columns = {"classes": np.array(samples.classes), "keys": samples.keys, "labels": samples.labels.astype(np.int16)}
    columns["true_labels"] = samples.true_labels.astype(np.int16)
    return columns if samples.votes is None else {**columns, "votes": samples.votes.astype(np.float32)}


def from_columns(arrays: dict[str, NDArray[Any]]) -> SampleTable:
    labels, true = (arrays[name].astype(np.int64) for name in ("labels", "true_labels"))
    return SampleTable(tuple(arrays["classes"].tolist()), arrays["keys"], labels, true, arrays.get("votes"))


def load_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Read all arrays of an NPZ file. Raises `UserError` if it is missing or corrupt."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {RENAMED_FIELDS.get(name, name): file[name] for name in file.files}
    except FileNotFoundError:
        raise UserError(
            f"{path}: missing; the run has not written it yet, or was made by an older version that does not write it"
        ) from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{path}: truncated or corrupt ({error}); copy the file again") from None
