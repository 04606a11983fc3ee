"""Distances between predicted distributions and annotator distributions.

These are the Jensen-Shannon divergence and the six standard measures of label distribution learning (Geng, 2016, "Label
Distribution Learning", table 1).

Every function takes the true distributions p and the predicted distributions q, [V, C] float64 with rows that sum to 1,
and returns [V], one value per sample. Divergences are in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FLOOR = 1e-12
"""Lower bound of q in KL(p || q), which keeps it finite where q is 0 and p is not."""


def kl(p: Floats, q: Floats) -> Floats:
    """Return KL(p || q), the sum of p log(p / q). Terms with p = 0 are 0; q is clamped to `FLOOR`."""
    terms = np.zeros_like(p)
    positive = p > 0
    terms[positive] = p[positive] * np.log(p[positive] / np.maximum(q[positive], FLOOR))
    return row_sum(terms)


def jensen_shannon(p: Floats, q: Floats) -> Floats:
    """Return the Jensen-Shannon divergence (not its square root), in [0, log 2]."""
    mean = (p + q) / 2  # positive wherever p or q is, so FLOOR only clamps values below it
    return (kl(p, mean) + kl(q, mean)) / 2


def chebyshev(p: Floats, q: Floats) -> Floats:
    """Return the largest absolute difference over classes, in [0, 1]."""
    largest: Floats = np.abs(p - q).max(axis=1)
    return largest


def clark(p: Floats, q: Floats) -> Floats:
    """Return the square root of the sum of squared relative differences, in [0, sqrt C]."""
    return np.sqrt(row_sum(relative_difference(p, q) ** 2))


def canberra(p: Floats, q: Floats) -> Floats:
    """Return the sum of relative differences, in [0, C]."""
    return row_sum(relative_difference(p, q))


def cosine(p: Floats, q: Floats) -> Floats:
    """Return the cosine similarity of p and q, in [0, 1]; 1 if equal."""
    return row_sum(p * q) / np.sqrt(row_sum(p**2) * row_sum(q**2))


def intersection(p: Floats, q: Floats) -> Floats:
    """Return the overlap of p and q, in [0, 1]; 1 if equal."""
    return row_sum(np.minimum(p, q))


def relative_difference(p: Floats, q: Floats) -> Floats:
    """Return |p - q| / (p + q), [V, C]; 0 where both are 0."""
    total = p + q
    return np.divide(np.abs(p - q), total, out=np.zeros_like(total), where=total > 0)


def row_sum(terms: Floats) -> Floats:
    sums: Floats = terms.sum(axis=1)
    return sums


MEASURES: Mapping[str, Callable[[Floats, Floats], Floats]] = {
    "kl": kl,
    "jensen_shannon": jensen_shannon,
    "chebyshev": chebyshev,
    "clark": clark,
    "canberra": canberra,
    "cosine": cosine,
    "intersection": intersection,
}
SIMILARITIES = ("cosine", "intersection")
"""Measures for which higher is better."""
