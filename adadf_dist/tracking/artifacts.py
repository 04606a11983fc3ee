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
from adadf_dist.metrics.predictions import Answers
from adadf_dist.tracking.sample_history import write_arrays

FACES = "faces.npz"
MOST_FEATURES = 2000
"""Faces of a split whose features are kept: what a map of points can show."""


class Faces(NamedTuple):
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


class Recorded(NamedTuple):
    """A split as the selected model saw it."""

    faces: Faces
    answers: Answers
    featured: NDArray[np.int64]
    """[M], numbers of the faces whose features were kept, evenly spread over the split."""
    features: NDArray[np.float32]
    """[M, F], before the classifier of the target branch (stored as float16)."""


def record_faces(folder: Path, split: Split, noise: LabelNoise | None) -> None:
    """Write `faces.npz` of a training split. Raises `UserError`."""
    true = split.labels if noise is None else noise.true
    write_arrays(folder / FACES, columns_of(Faces(split.classes, names(split), split.labels, true, split.votes)))


def read_faces(folder: Path) -> Faces:
    """Raises `UserError` where the run has written none."""
    return faces_of(read_arrays(folder / FACES))


def record_answers(folder: Path, split: Split, answers: Answers, features: NDArray[np.float32]) -> None:
    """Write what the selected model predicts of a split, and the features [M, F] of the samples `featured` names.

    Raises `UserError`.
    """
    faces = Faces(split.classes, names(split), split.labels, split.labels, split.votes)
    arrays = {**columns_of(faces), **answers._asdict(), "featured": featured(len(split))}
    arrays["features"] = features.astype(np.float16)
    write_arrays(folder / f"answers-{split.name}.npz", arrays)


def read_answers(folder: Path, split: str) -> Recorded:
    """Raises `UserError` where the run has written none."""
    arrays = read_arrays(folder / f"answers-{split}.npz")
    answers = Answers(**{name: arrays[name] for name in Answers._fields})
    return Recorded(faces_of(arrays), answers, arrays["featured"], arrays["features"].astype(np.float32))


def featured(samples: int) -> NDArray[np.int64]:
    """At most `MOST_FEATURES` sample numbers, evenly spread over a split, whose order was shuffled when written."""
    return np.unique(np.linspace(0, samples - 1, min(samples, MOST_FEATURES)).round().astype(np.int64))


def names(split: Split) -> NDArray[np.str_]:
    return np.array(split.keys.tolist(), dtype=np.str_)


def columns_of(faces: Faces) -> dict[str, NDArray[Any]]:
    columns = {"classes": np.array(faces.classes), "keys": faces.keys, "labels": faces.labels.astype(np.int16)}
    columns["true_labels"] = faces.true_labels.astype(np.int16)
    return columns if faces.votes is None else {**columns, "votes": faces.votes.astype(np.float32)}


def faces_of(arrays: dict[str, NDArray[Any]]) -> Faces:
    labels, true = (arrays[name].astype(np.int64) for name in ("labels", "true_labels"))
    return Faces(tuple(arrays["classes"].tolist()), arrays["keys"], labels, true, arrays.get("votes"))


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Raises `UserError` for a file that is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise UserError(f"{path}: missing; the run has not come so far, or was made by an older version") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{path}: damaged ({error}); copy it again") from None
