"""Confident learning (Northcutt et al., 2021) on the same predictions, using cleanlab (optional)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class ConfidentLearning(NamedTuple):
    """Scores of S samples."""

    label_quality: Floats
    """[S], 1 - cleanlab's default label quality, the predicted probability of the label."""
    issues: NDArray[np.bool_]
    """[S], samples flagged by `find_label_issues`."""

    @property
    def score(self) -> Floats:
        """[S]: flagged samples above all others, each group ordered by `label_quality`."""
        return self.label_quality + self.issues


def confident_learning(labels: NDArray[np.int64], predicted: Floats) -> ConfidentLearning:
    """Compute scores from labels [S] and predicted distributions [S, C].

    cleanlab expects out-of-sample predictions from cross-validation. These predictions are in-sample, which puts it at
    a disadvantage if the network memorized wrong labels.
    """
    present, compact = np.unique(labels, return_inverse=True)  # cleanlab requires samples of every class
    shown = predicted[:, present]
    shown = shown / shown.sum(axis=1, keepdims=True)
    quality = get_label_quality_scores(compact, shown)
    issues = find_label_issues(compact, shown, n_jobs=1)
    return ConfidentLearning(1 - np.asarray(quality, dtype=np.float64), np.asarray(issues, dtype=bool))
