"""Distances between distributions against scipy and loops over the definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import distance

from adadf_dist.metrics.distances import FLOOR, MEASURES, jensen_shannon, kl

Row = list[float]


def naive_kl(p: Row, q: Row) -> float:
    return sum(a * math.log(a / max(b, FLOOR)) for a, b in zip(p, q, strict=True) if a)


def naive_clark(p: Row, q: Row) -> float:
    return math.sqrt(sum(((a - b) / (a + b)) ** 2 for a, b in zip(p, q, strict=True) if a + b))


NAIVE = {
    "kl": naive_kl,
    "jensen_shannon": lambda p, q: distance.jensenshannon(p, q) ** 2,
    "chebyshev": distance.chebyshev,
    "clark": naive_clark,
    "canberra": distance.canberra,
    "cosine": lambda p, q: 1 - distance.cosine(p, q),
    "intersection": lambda p, q: 1 - distance.cityblock(p, q) / 2,
}


def drawn(seed: int) -> NDArray[np.float64]:
    """[40, 7] distributions of ten votes: many zeros, as with annotators."""
    random = np.random.default_rng(seed)
    return random.multinomial(10, random.dirichlet(np.full(7, 0.4), size=40)) / 10


@pytest.mark.parametrize("name", MEASURES)
def test_each_measure_equals_scipy_or_a_loop(name: str) -> None:
    p = drawn(0)
    for q in (np.random.default_rng(1).dirichlet(np.ones(7), size=40), drawn(2)):
        found = MEASURES[name](p, q)
        wanted = [NAIVE[name](*pair) for pair in zip(p.tolist(), q.tolist(), strict=True)]
        assert found.shape == (40,)
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MEASURES)
def test_equal_distributions_have_distance_zero(name: str) -> None:
    p = drawn(3)
    best = 1.0 if name in ("cosine", "intersection") else 0.0
    np.testing.assert_allclose(MEASURES[name](p, p), best, atol=1e-12)


def test_disjoint_distributions_have_maximal_distance() -> None:
    p, q = np.array([[1.0, 0.0, 0.0]]), np.array([[0.0, 0.5, 0.5]])
    found = {name: measure(p, q).item() for name, measure in MEASURES.items()}
    assert found == pytest.approx(
        {
            "kl": -math.log(FLOOR),
            "jensen_shannon": math.log(2),
            "chebyshev": 1,
            "clark": math.sqrt(3),
            "canberra": 3,
            "cosine": 0,
            "intersection": 0,
        }
    )


def test_distances_are_finite() -> None:
    p, q = np.array([[1 - 1e-300, 1e-300]]), np.array([[0.0, 1.0]])
    assert np.isfinite(kl(p, q)).all() and np.isfinite(jensen_shannon(p, q)).all()
