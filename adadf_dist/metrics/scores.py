"""What is measured of predictions against labels: shares right, by class, calibration, and how sure each number is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from adadf_dist.metrics.classification import Interval, wilson_interval

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

BINS = 15
"""Of equal width, for calibration."""
RESAMPLES = 1000
"""Of the faces, for a bootstrap interval."""
SEED = 0
"""Of the resamples: the same faces and answers give the same interval."""


class Estimate(NamedTuple):
    """A number with its 95 % interval."""

    value: float
    interval: Interval


class ClassScore(NamedTuple):
    """One class against all others. NaN where nothing is to be divided: no faces, none predicted."""

    name: str
    faces: int
    predicted: int
    precision: float
    recall: float
    f1: float


class Bin(NamedTuple):
    """Faces whose confidence, the probability of the predicted class, is above `low` and at most `high`."""

    low: float
    high: float
    faces: int
    confidence: float
    """Mean; NaN in an empty bin."""
    accuracy: float


class Calibration(NamedTuple):
    """Whether probabilities mean what they say."""

    ece: float
    """Expected calibration error of the predicted class: mean of |accuracy - confidence| over the bins, by faces."""
    brier: float
    """Mean over faces of the squared error summed over classes, in [0, 2]."""
    nll: float
    """Mean -log p of the label, in nats."""
    bins: tuple[Bin, ...]


class Scores(NamedTuple):
    """S faces against their labels."""

    accuracy: Estimate
    """Interval: Wilson's."""
    mean_class_accuracy: Estimate
    """Mean recall of the classes that have faces; interval: bootstrap over faces."""
    macro_f1: Estimate
    """Mean F1 of the classes that have faces; interval: bootstrap over faces."""
    classes: tuple[ClassScore, ...]
    confusion: NDArray[np.int64]
    """[C, C]: row the annotated class, column the predicted one."""
    calibration: Calibration


def score(logits: NDArray[np.float32], labels: Labels, names: tuple[str, ...]) -> Scores:
    """Logits [S, C] against labels [S] in the order of `names`."""
    predicted = logits.argmax(axis=1)
    right = predicted == labels
    confusion = confusion_matrix(labels, predicted, labels=np.arange(len(names)))
    precision, recall, f1, faces = precision_recall_fscore_support(
        labels, predicted, labels=np.arange(len(names)), zero_division=np.nan
    )
    columns = (faces.tolist(), confusion.sum(axis=0).tolist(), precision.tolist(), recall.tolist(), f1.tolist())
    present = faces > 0

    def by_class(times: Floats) -> Floats:
        """Mean recall and F1 of the classes, each face counted so many times."""
        size = len(names)
        hits = np.bincount(labels, times * right, minlength=size)
        own, guessed = (np.bincount(of, times, minlength=size) for of in (labels, predicted))
        some = own > 0
        return np.array([np.mean(hits[some] / own[some]), np.mean(2 * hits[some] / (own + guessed)[some])])

    low, high = bootstrap(len(labels), by_class)
    return Scores(
        accuracy=accuracy(right),
        mean_class_accuracy=Estimate(float(recall[present].mean()), Interval(low[0], high[0])),
        macro_f1=Estimate(float(f1[present].mean()), Interval(low[1], high[1])),
        classes=tuple(ClassScore(*row) for row in zip(names, *columns, strict=True)),
        confusion=confusion,
        calibration=calibrate(logits, labels),
    )


def accuracy(right: NDArray[np.bool_]) -> Estimate:
    """Of at least one face."""
    return Estimate(float(right.mean()), wilson_interval(int(right.sum()), len(right)))


def calibrate(logits: NDArray[np.float32], labels: Labels) -> Calibration:
    """Of logits [S, C] against labels [S]."""
    logs = log_softmax(logits.astype(np.float64), axis=1)
    probabilities = np.exp(logs)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, BINS + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, BINS - 1)
    bins = []
    for number in range(BINS):
        inside = place == number
        means = (float(confidence[inside].mean()), float(right[inside].mean())) if inside.any() else (np.nan, np.nan)
        bins.append(Bin(float(edges[number]), float(edges[number + 1]), int(inside.sum()), *means))
    error = sum(bin.faces * abs(bin.accuracy - bin.confidence) for bin in bins if bin.faces) / len(labels)
    squares = (probabilities - np.eye(logits.shape[1])[labels]) ** 2
    nll = -logs[np.arange(len(labels)), labels].mean()
    return Calibration(error, float(squares.sum(axis=1).mean()), float(nll), tuple(bins))


def bootstrap(faces: int, statistic: Callable[[Floats], Floats]) -> tuple[list[float], list[float]]:
    """95 % percentile intervals (Efron, 1979): lower ends and upper ends of the K numbers that `statistic` gives.

    `statistic` sees how many times each of the `faces` was drawn, [faces], in one resample with replacement.
    """
    random = np.random.default_rng(SEED)
    draws = (np.bincount(random.integers(faces, size=faces), minlength=faces) for _ in range(RESAMPLES))
    values = np.stack([statistic(times.astype(np.float64)) for times in draws])
    low, high = np.percentile(values, [2.5, 97.5], axis=0)
    return low.tolist(), high.tolist()


def bootstrap_means(rows: Floats) -> list[Estimate]:
    """Means of the K columns of [S, K] over its faces."""
    low, high = bootstrap(len(rows), lambda times: times @ rows / len(rows))
    return [Estimate(*both) for both in zip(rows.mean(axis=0).tolist(), map(Interval, low, high), strict=True)]
