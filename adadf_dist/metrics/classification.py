"""Metrics computed from a confusion matrix, with confidence intervals."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adadf_dist.metrics.intervals import Interval


class Metrics(NamedTuple):
    """Metrics of one split, in which each sample counts exactly once. Fractions are in [0, 1]."""

    samples: int
    accuracy: float
    """Fraction of samples that are classified correctly (eq 17)."""
    accuracy_interval: Interval
    """95% Wilson interval of the accuracy."""
    mean_class_accuracy: float
    """Mean recall over the classes with samples."""
    class_accuracy: tuple[float, ...]
    """[C], recall per class; NaN for a class without samples."""
    confusion: tuple[tuple[int, ...], ...]
    """[C, C], number of samples for each true class (row) and predicted class (column)."""
    cross_entropy: float
    """Mean -log p of the true class, in nats."""
    votes_kl: float | None
    """Mean KL(votes || prediction) in nats over the samples with votes; None if no sample has votes."""
    bayes_accuracy: float | None
    """Bayes-optimal accuracy: that of predicting the argmax of the true distributions; None if they are unknown."""

    def to_dict(self) -> dict[str, object]:
        """Return the metrics as JSON-serializable values; NaN becomes None."""
        values = self._asdict()
        values["class_accuracy"] = [None if math.isnan(v) else v for v in self.class_accuracy]
        values["accuracy_interval"] = list(self.accuracy_interval)
        values["confusion"] = [list(row) for row in self.confusion]
        return values


def per_class_recall(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the recall [C] of each class from a confusion matrix [C, C]; NaN for a class without samples."""
    totals = confusion.sum(axis=1)
    return np.where(totals > 0, np.diag(confusion) / np.maximum(totals, 1), np.nan)
