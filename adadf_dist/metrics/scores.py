"""Scores of predictions: accuracy, per-class metrics and calibration, with confidence intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from adadf_dist.metrics.intervals import Interval, wilson_interval

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

BINS = 15
"""Number of equal-width bins for calibration."""
RESAMPLES = 1000
"""Number of bootstrap resamples."""
SEED = 0
"""Seed of the bootstrap, fixed so that the same samples and predictions give the same interval."""


class Estimate(NamedTuple):
    """A value with its 95% interval."""

    value: float
    interval: Interval


class ClassScore(NamedTuple):
    """Scores of one class against all others. Undefined scores (class without samples or never predicted) are NaN."""

    name: str
    faces: int
    predicted: int
    precision: float
    recall: float
    f1: float


class Bin(NamedTuple):
    """Samples whose confidence (probability of the predicted class) is in (`low`, `high`]."""

    low: float
    high: float
    faces: int
    confidence: float
    """Mean confidence; NaN in an empty bin."""
    accuracy: float


class Calibration(NamedTuple):
    """Calibration of the predicted probabilities."""

    ece: float
    """Expected calibration error: mean |accuracy - confidence| over bins, weighted by their number of samples."""
    brier: float
    """Brier score: mean over samples of the squared error summed over classes, in [0, 2]."""
    nll: float
    """Mean -log p of the label, in nats."""
    bins: tuple[Bin, ...]


class Scores(NamedTuple):
    """Scores of the predictions for a set of samples."""

    accuracy: Estimate
    """Fraction of correct predictions, with its Wilson interval."""
    mean_class_accuracy: Estimate
    """Mean recall over the classes with samples, with a bootstrap interval over samples."""
    macro_f1: Estimate
    """Mean F1 over the classes with samples, with a bootstrap interval over samples."""
    classes: tuple[ClassScore, ...]
    confusion: NDArray[np.int64]
    """[C, C], number of samples for each true class (row) and predicted class (column)."""
    calibration: Calibration


def score(logits: NDArray[np.float32], labels: Labels, names: tuple[str, ...]) -> Scores:
    """Score logits [S, C] against labels [S]; class indices follow `names`."""
    predicted = logits.argmax(axis=1)
    correct = predicted == labels
    confusion = confusion_matrix(labels, predicted, labels=np.arange(len(names)))
    precision, recall, f1, faces = precision_recall_fscore_support(
        labels, predicted, labels=np.arange(len(names)), zero_division=np.nan
    )
    columns = (faces.tolist(), confusion.sum(axis=0).tolist(), precision.tolist(), recall.tolist(), f1.tolist())
    present = faces > 0

    def by_class(times: Floats) -> Floats:
        """Return mean class recall and mean F1, with each sample counted `times` times."""
        size = len(names)
        hits = np.bincount(labels, times * correct, minlength=size)
        own, guessed = (np.bincount(of, times, minlength=size) for of in (labels, predicted))
        some = own > 0
        return np.array([np.mean(hits[some] / own[some]), np.mean(2 * hits[some] / (own + guessed)[some])])

    low, high = bootstrap(len(labels), by_class)
    return Scores(
        accuracy=accuracy(correct),
        mean_class_accuracy=Estimate(float(recall[present].mean()), Interval(low[0], high[0])),
        macro_f1=Estimate(float(f1[present].mean()), Interval(low[1], high[1])),
        classes=tuple(ClassScore(*row) for row in zip(names, *columns, strict=True)),
        confusion=confusion,
        calibration=calibrate(logits, labels),
    )


def accuracy(correct: NDArray[np.bool_]) -> Estimate:
    """Return the accuracy over at least one sample, with its Wilson interval."""
    return Estimate(float(correct.mean()), wilson_interval(int(correct.sum()), len(correct)))


def calibrate(logits: NDArray[np.float32], labels: Labels) -> Calibration:
    """Compute the calibration of logits [S, C] against labels [S]."""
    logs = log_softmax(logits.astype(np.float64), axis=1)
    probabilities = np.exp(logs)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, BINS + 1)
    bin_of = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, BINS - 1)
    bins = []
    for number in range(BINS):
        inside = bin_of == number
        means = (float(confidence[inside].mean()), float(correct[inside].mean())) if inside.any() else (np.nan, np.nan)
        bins.append(Bin(float(edges[number]), float(edges[number + 1]), int(inside.sum()), *means))
    error = sum(bin.faces * abs(bin.accuracy - bin.confidence) for bin in bins if bin.faces) / len(labels)
    squares = (probabilities - np.eye(logits.shape[1])[labels]) ** 2
    nll = -logs[np.arange(len(labels)), labels].mean()
    return Calibration(error, float(squares.sum(axis=1).mean()), float(nll), tuple(bins))


def bootstrap(samples: int, statistic: Callable[[Floats], Floats]) -> tuple[list[float], list[float]]:
    """Return the lower and upper bounds of 95% percentile intervals (Efron, 1979) for the K values of `statistic`.

    `statistic` receives an array [samples] with the number of times each sample occurs in a resample with replacement.
    """
    random = np.random.default_rng(SEED)
    resamples = (np.bincount(random.integers(samples, size=samples), minlength=samples) for _ in range(RESAMPLES))
    values = np.stack([statistic(times.astype(np.float64)) for times in resamples])
    low, high = np.percentile(values, [2.5, 97.5], axis=0)
    return low.tolist(), high.tolist()


def bootstrap_means(rows: Floats) -> list[Estimate]:
    """Return the mean of each column of `rows` [S, K], with its bootstrap interval over samples."""
    low, high = bootstrap(len(rows), lambda times: times @ rows / len(rows))
    return [Estimate(*both) for both in zip(rows.mean(axis=0).tolist(), map(Interval, low, high), strict=True)]
