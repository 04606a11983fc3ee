"""Order is a pure function: which faces an epoch sees, cut into global batches. numpy alone, no state.

Every rank computes the same plan and takes its slice, so the number of ranks changes nothing: not the order, not the
batches, not what a resumed run sees next.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.int64]
"""Sample numbers within a split."""

EPOCH_STREAM, HOLDOUT_STREAM, REPLACEMENT_STREAM = 1, 2, 5
"""Streams of random numbers drawn from one seed; 3 and 4 are stream.py's."""


def epoch_batches(labels: NDArray[np.int64], sampler: str, batch_size: int, seed: int, epoch: int) -> list[Samples]:
    """The global batches of an epoch.

    Args:
        labels: [S], class of each sample of the split.
        sampler: `all`, `balanced`, `oversample` or `sqrt` (`data.sampler`).
        batch_size: B, samples a global batch at most.
        epoch: counted from 0.

    Returns:
        ceil(E / B) arrays whose sizes differ by at most one, E samples in all; E is S but for `balanced` (classes
        present times the rarest's count) and `oversample` (times the largest's).
    """
    random = np.random.default_rng((seed, EPOCH_STREAM, epoch))
    chosen = sample_indices(labels, sampler, random)
    random.shuffle(chosen)
    return split_batches(chosen, batch_size)


def sample_indices(labels: NDArray[np.int64], sampler: str, random: np.random.Generator) -> Samples:
    """Which samples an epoch sees, class by class, a fresh draw each time."""
    if sampler == "all":
        return np.arange(len(labels))
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    counts = np.array([len(m) for m in members])
    if sampler == "balanced":
        wanted = np.full(len(counts), counts.min())
    elif sampler == "oversample":
        wanted = np.full(len(counts), counts.max())
    else:
        assert sampler == "sqrt", sampler
        wanted = apportion(len(labels), np.sqrt(counts))
    return np.concatenate([repeat_and_sample(m, n, random) for m, n in zip(members, wanted.tolist(), strict=True)])


def repeat_and_sample(members: Samples, number: int, random: np.random.Generator) -> Samples:
    """`number` of the members: each as often as any other, but for a draw without replacement of the rest."""
    repeats, rest = divmod(number, len(members))
    return np.concatenate([np.tile(members, repeats), random.permutation(members)[:rest]])


def apportion(total: int, weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Whole numbers proportional to `weights` that sum to `total` (largest remainders)."""
    shares = total * weights / weights.sum()
    whole: NDArray[np.int64] = np.floor(shares).astype(np.int64)
    order = np.argsort(whole - shares, kind="stable")
    whole[order[: total - whole.sum()]] += 1
    return whole


def split_batches(samples: Samples, batch_size: int) -> list[Samples]:
    """ceil(len / B) runs of neighbours whose lengths differ by at most one."""
    runs: list[Samples] = np.array_split(samples, math.ceil(len(samples) / batch_size))
    return runs


def rank_slice(size: int, rank: int, ranks: int) -> tuple[int, int]:
    """First and last-plus-one place of a rank's slice of `size` rows; slices differ by at most one."""
    share, more = divmod(size, ranks)
    first = rank * share + min(rank, more)
    return first, first + share + (rank < more)


def stratified_holdout(labels: NDArray[np.int64], fraction: float, seed: int) -> tuple[Samples, Samples]:
    """Split a training split into train and validation by seed, stratified by class, both in stored order.

    A class of two samples or more has at least one on each side.
    """
    random = np.random.default_rng((seed, HOLDOUT_STREAM))
    validation = []
    for c in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == c))
        number = min(max(1, round(fraction * len(members))), len(members) - 1)
        validation.append(members[:number])
    held_out = np.zeros(len(labels), dtype=bool)
    held_out[np.concatenate(validation)] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def replacement_candidates(labels: NDArray[np.int64], sample: int, seed: int, epoch: int) -> Iterator[int]:
    """The other samples of a sample's class, in the order in which they may stand in for it in an epoch."""
    others = np.flatnonzero(labels == labels[sample])
    for other in np.random.default_rng((seed, REPLACEMENT_STREAM, epoch, sample)).permutation(others).tolist():
        if other != sample:
            yield other
