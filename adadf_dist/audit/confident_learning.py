"""Confident learning (Northcutt et al., 2021) on the same predictions, by its authors' package; an optional extra."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class ConfidentLearning(NamedTuple):
    """Of S faces."""

    label_quality: Floats
    """[S], 1 - label quality as the package scores it unless told otherwise: the share predicted for the label."""
    issues: NDArray[np.bool_]
    """[S], the faces that `find_label_issues` names."""

    @property
    def score(self) -> Floats:
        """[S]: the named faces before all others, each part by doubt."""
        return self.label_quality + self.issues


def confident_learning(labels: NDArray[np.int64], predicted: Floats) -> ConfidentLearning:
    """From labels [S] and predicted distributions [S, C].

    cleanlab asks for out-of-sample predictions, by cross-validation; these are of the network that was trained on the
    faces, so it is at a disadvantage here as far as the network has learnt wrong labels by heart.
    """
    present, compact = np.unique(labels, return_inverse=True)  # cleanlab wants every class to have a face
    shown = predicted[:, present]
    shown = shown / shown.sum(axis=1, keepdims=True)
    quality = get_label_quality_scores(compact, shown)
    issues = find_label_issues(compact, shown, n_jobs=1)
    return ConfidentLearning(1 - np.asarray(quality, dtype=np.float64), np.asarray(issues, dtype=bool))
