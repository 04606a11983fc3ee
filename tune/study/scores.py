"""Read the scores of trials (per sample if predictions were saved), and detect collapsed networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adadf_dist.diagnostics.classes import describe_collapse
from adadf_dist.errors import UserError
from adadf_dist.metrics.intervals import Score
from adadf_dist.tracking.artifacts import load_predictions
from tune.study.study import Study
from tune.study.trial import TrialResult

Split = Literal["validation", "test"]


def read_score(study: Study, outcome: TrialResult, split: Split = "validation") -> Score:
    """Return the score of a finished trial's selected epoch on a split."""
    metrics = outcome.selected if split == "validation" else outcome.tested
    accuracy = float(metrics["accuracy"])
    correct = read_correct(study.trials.path_of(outcome.trial), split, accuracy)
    return Score(accuracy, int(metrics["samples"]), correct)


def read_correct(folder: Path, split: str, accuracy: float) -> NDArray[np.bool_] | None:
    """Return whether each prediction of the selected epoch is correct, [samples]; None if they were not saved."""
    try:
        kept = load_predictions(folder, split)
    except UserError:
        return None
    correct: NDArray[np.bool_] = kept.answers.predicted_labels == kept.faces.labels
    return correct if abs(float(correct.mean()) - accuracy) < 1e-6 else None


def find_collapse(outcome: TrialResult, classes: Sequence[str]) -> str:
    """Describe how a trial's selected network collapsed (to one class or to chance), or return "" if it did not."""
    confusion: Any = outcome.selected.get("confusion")
    if confusion is None:
        return ""
    counts, mean = np.array(confusion, dtype=np.int64), outcome.mean_class_accuracy
    assert mean is not None
    names = classes if len(classes) == len(counts) else [f"class {number}" for number in range(len(counts))]
    text = describe_collapse(counts.sum(axis=0), counts.sum(axis=1), mean, names)
    return f"seed {outcome.trial.seed}: {text}" if text else ""
