"""What a confusion matrix says, with intervals."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


class Interval(NamedTuple):
    low: float
    high: float


class Metrics(NamedTuple):
    """One split, each of its samples counted exactly once. Shares are in [0, 1]."""

    samples: int
    accuracy: float
    """Eq 17."""
    accuracy_interval: Interval
    """Wilson's, 95 %."""
    mean_class_accuracy: float
    """Mean of the recalls of the classes that have samples."""
    class_accuracy: tuple[float, ...]
    """[C] recall; NaN for a class without samples."""
    confusion: tuple[tuple[int, ...], ...]
    """[C][C]: row the annotated class, column the predicted one."""
    cross_entropy: float
    """Mean -log p of the annotated class, in nats."""
    vote_divergence: float | None
    """Mean KL(votes || prediction) in nats over the samples that have votes; None without votes."""
    ceiling: float | None
    """Accuracy of the best possible guess, argmax of the true distributions, where these are known."""

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON: NaN becomes None."""
        values = self._asdict()
        values["class_accuracy"] = [None if math.isnan(v) else v for v in self.class_accuracy]
        values["accuracy_interval"] = list(self.accuracy_interval)
        values["confusion"] = [list(row) for row in self.confusion]
        return values


def wilson_interval(correct: int, total: int) -> Interval:
    """95 % interval of a share (Wilson, 1927), inside [0, 1] even at its ends."""
    share, z2 = correct / total, Z95**2
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = Z95 / (1 + z2 / total) * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    # rounding would leave the ends of 0 and all a hair short of where they lie exactly
    return Interval(0.0 if correct == 0 else centre - half, 1.0 if correct == total else centre + half)


def per_class_recall(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """[C] recall of each class from [C, C] counts; NaN where a class has no samples."""
    totals = confusion.sum(axis=1)
    return np.where(totals > 0, np.diag(confusion) / np.maximum(totals, 1), np.nan)
