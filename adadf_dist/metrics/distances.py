"""How far a distribution over classes is from the annotators': Jensen-Shannon, and the six measures that the
label-distribution-learning literature reports together (Geng, 2016, "Label Distribution Learning", table 1).

Every function takes the true distributions p and the predicted ones q, [V, C] float64 whose rows sum to 1, and returns
[V], a value a face. Divergences are in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FLOOR = 1e-12
"""Least that the prediction counts for in KL(p || q): what it rules out and annotators saw would else cost infinity."""


def kl(p: Floats, q: Floats) -> Floats:
    """KL(p || q), sum of p log(p / q); where p is 0 the term is 0, and q counts as `FLOOR` at least."""
    terms = np.zeros_like(p)
    seen = p > 0
    terms[seen] = p[seen] * np.log(p[seen] / np.maximum(q[seen], FLOOR))
    return row_sum(terms)


def jensen_shannon(p: Floats, q: Floats) -> Floats:
    """Mean KL of p and of q from their mean, in [0, log 2]: the divergence, of which some take the root."""
    mean = (p + q) / 2  # positive wherever p or q is, so no floor is ever met but by numbers below it
    return (kl(p, mean) + kl(q, mean)) / 2


def chebyshev(p: Floats, q: Floats) -> Floats:
    """Largest difference of a class, in [0, 1]."""
    largest: Floats = np.abs(p - q).max(axis=1)
    return largest


def clark(p: Floats, q: Floats) -> Floats:
    """Root of the sum of squared relative differences, in [0, sqrt C]."""
    return np.sqrt(row_sum(relative_difference(p, q) ** 2))


def canberra(p: Floats, q: Floats) -> Floats:
    """Sum of relative differences, in [0, C]."""
    return row_sum(relative_difference(p, q))


def cosine(p: Floats, q: Floats) -> Floats:
    """Cosine of the angle between p and q, in [0, 1]; 1 where they agree."""
    return row_sum(p * q) / np.sqrt(row_sum(p**2) * row_sum(q**2))


def intersection(p: Floats, q: Floats) -> Floats:
    """Share that p and q have in common, in [0, 1]; 1 where they agree."""
    return row_sum(np.minimum(p, q))


def relative_difference(p: Floats, q: Floats) -> Floats:
    """[V, C] of |p - q| / (p + q); 0 where both are 0."""
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
"""Measures of which more is better."""
