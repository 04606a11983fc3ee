"""Compare the distributions of annotator votes with predictions, training targets and labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adadf_dist.checkpoint.trained_model import TrainedModel
from adadf_dist.data.dataset import Split
from adadf_dist.metrics.distances import MEASURES
from adadf_dist.metrics.predictions import Predictions, fuse_distributions
from adadf_dist.metrics.scores import Estimate, bootstrap_means

Floats = NDArray[np.float64]

SMOOTHING = 0.1
"""Fraction of the probability mass that label smoothing spreads evenly over all classes."""


class Distances(NamedTuple):
    """Mean distances from the annotator votes, over all samples that have votes."""

    faces: int
    measures: Mapping[str, Mapping[str, Estimate]]
    """Name of a compared distribution -> distance measure -> mean distance."""


def compare_with_votes(trained: TrainedModel, predictions: Predictions, split: Split) -> Distances | None:
    """Return each distribution's mean distances from the votes; None if no sample of the split has votes."""
    if split.votes is None or not (voted := split.votes.sum(axis=1) > 0).any():
        return None
    votes = normalize_rows(split.votes[voted].astype(np.float64))
    found = distributions(trained, predictions, split.labels)
    compared = {name: normalize_rows(rows[voted]) for name, rows in found.items()}
    rows = np.stack([measure(votes, q) for q in compared.values() for measure in MEASURES.values()], axis=1)
    means = iter(bootstrap_means(rows))
    return Distances(int(voted.sum()), {name: {measure: next(means) for measure in MEASURES} for name in compared})


def distributions(trained: TrainedModel, predictions: Predictions, labels: NDArray[np.int64]) -> dict[str, Floats]:
    """Return the distributions to compare with the votes, [S, C] each: predictions, training targets and labels."""
    classes, config = len(trained.classes), trained.config
    one_hot = np.eye(classes)[labels]
    found = {"predicted": predictions.target_probs}
    if trained.model.auxiliary is not None:  # the baseline has neither
        _, fused = fuse_distributions(predictions, labels, trained.class_distributions, config.loss, config.batch_size)
        found |= {"auxiliary": predictions.auxiliary_probs, "fused": fused}
    return {
        **found,
        "class distribution": trained.class_distributions.numpy()[labels],
        "one-hot": one_hot,
        "label-smoothed": (1 - SMOOTHING) * one_hot + SMOOTHING / classes,
    }


def normalize_rows(rows: Floats) -> Floats:
    """Divide each row by its sum: votes are counts, and published threshold distributions do not sum to 1."""
    normalized: Floats = rows / rows.sum(axis=1, keepdims=True)
    return normalized
