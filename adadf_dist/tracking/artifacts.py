"""What a run folder keeps of faces, for those who look at the run later: the report, the audit, people's own scripts.

faces.npz                 the training faces: keys, labels as trained, true labels under label noise, votes
history/epoch-NNNN.npz    of each epoch, by `tracking/sample_history.py`
answers-SPLIT.npz         what the selected model says of validation, and of test once it has been tested
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
from adadf_dist.metrics.predictions import Predictions
from adadf_dist.tracking.sample_history import write_arrays

SAMPLES_FILE = "faces.npz"
MAX_FEATURE_SAMPLES = 2000
"""Faces of a split whose features are kept: what a map of points can show."""


class SampleTable(NamedTuple):
    """S faces of a split, in its order."""

    classes: tuple[str, ...]
    keys: NDArray[np.str_]
    """[S]"""
    labels: NDArray[np.int64]
    """[S], what training saw."""
    true_labels: NDArray[np.int64]
    """[S], what the dataset has: others only where noise was put in on purpose."""
    votes: NDArray[np.float32] | None
    """[S, C] annotators a class; None where nobody voted."""


class SavedPredictions(NamedTuple):
    """A split as the selected model saw it."""

    faces: SampleTable
    answers: Predictions
    featured: NDArray[np.int64]
    """[M], numbers of the faces whose features were kept, evenly spread over the split."""
    features: NDArray[np.float32]
    """[M, F], before the classifier of the target branch (stored as float16)."""


def save_samples(folder: Path, split: Split, noise: LabelNoise | None) -> None:
    """Write `faces.npz` of a training split. Raises `UserError`."""
    true = split.labels if noise is None else noise.true
    write_arrays(
        folder / SAMPLES_FILE,
        to_columns(SampleTable(split.classes, sample_keys(split), split.labels, true, split.votes)),
    )


def load_samples(folder: Path) -> SampleTable:
    """Raises `UserError` where the run has written none."""
    return from_columns(load_npz(folder / SAMPLES_FILE))


def save_predictions(folder: Path, split: Split, answers: Predictions, features: NDArray[np.float32]) -> None:
    """Write what the selected model predicts of a split, and the features [M, F] of the samples `feature_subset` names.

    Raises `UserError`.
    """
    faces = SampleTable(split.classes, sample_keys(split), split.labels, split.labels, split.votes)
    arrays = {**to_columns(faces), **answers._asdict(), "featured": feature_subset(len(split))}
    arrays["features"] = features.astype(np.float16)
    write_arrays(folder / f"answers-{split.name}.npz", arrays)


def load_predictions(folder: Path, split: str) -> SavedPredictions:
    """Raises `UserError` where the run has written none."""
    arrays = load_npz(folder / f"answers-{split}.npz")
    answers = Predictions(**{name: arrays[name] for name in Predictions._fields})
    return SavedPredictions(from_columns(arrays), answers, arrays["featured"], arrays["features"].astype(np.float32))


def feature_subset(samples: int) -> NDArray[np.int64]:
    """At most `MAX_FEATURE_SAMPLES` sample numbers, evenly spread over a split (stored in shuffled order)."""
    return np.unique(np.linspace(0, samples - 1, min(samples, MAX_FEATURE_SAMPLES)).round().astype(np.int64))


def sample_keys(split: Split) -> NDArray[np.str_]:
    return np.array(split.keys.tolist(), dtype=np.str_)


def to_columns(faces: SampleTable) -> dict[str, NDArray[Any]]:
    columns = {"classes": np.array(faces.classes), "keys": faces.keys, "labels": faces.labels.astype(np.int16)}
    columns["true_labels"] = faces.true_labels.astype(np.int16)
    return columns if faces.votes is None else {**columns, "votes": faces.votes.astype(np.float32)}


def from_columns(arrays: dict[str, NDArray[Any]]) -> SampleTable:
    labels, true = (arrays[name].astype(np.int64) for name in ("labels", "true_labels"))
    return SampleTable(tuple(arrays["classes"].tolist()), arrays["keys"], labels, true, arrays.get("votes"))


def load_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Raises `UserError` for a file that is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UserError(f"{path}: missing; the run has not come so far, or was made by an older version") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{path}: damaged ({error}); copy it again") from None
