"""Metrics against the equations that define them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from adadf_dist.metrics.classification import per_class_recall
from adadf_dist.metrics.intervals import wilson_interval


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (10, 10), (81, 263), (2790, 3579)])
def test_wilson_interval_solves_the_score_equation(correct: int, total: int) -> None:
    """At an end p of the interval, |share - p| is 1.96 standard errors of p."""
    share = correct / total
    for p in wilson_interval(correct, total):
        assert 0 <= p <= 1
        if 0 < p < 1:
            assert abs(share - p) == pytest.approx(1.959963985 * math.sqrt(p * (1 - p) / total), rel=1e-6)


def test_recalls_by_class() -> None:
    confusion = np.array([[8, 2, 0], [1, 3, 0], [0, 0, 0]])
    recalls = per_class_recall(confusion)
    assert recalls[:2].tolist() == [0.8, 0.75]
    assert math.isnan(recalls[2])
