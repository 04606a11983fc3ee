"""Pure functions that choose and order the samples of an epoch, split into global batches. Requires only numpy.

Every rank computes the same plan and takes its slice of each batch. The order, the batches and the batch at which a run
resumes therefore do not depend on the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from adadf_dist.errors import UserError

Samples = NDArray[np.int64]
"""Sample indices within a split."""

EPOCH_STREAM, HOLDOUT_STREAM, REPLACEMENT_STREAM = 1, 2, 5
"""Keys of the random streams derived from one seed; loaders/streaming.py uses 3 and 4."""

MIN_SAMPLES_PER_RANK = 2
"""Minimum number of samples per rank: BatchNorm and the two attention groups of equation 10 need at least two."""


def check_batch_size(batch_size: int, ranks: int) -> None:
    """Raise `UserError` if a global batch gives any rank fewer samples than a training step needs."""
    if batch_size < MIN_SAMPLES_PER_RANK * ranks:
        raise UserError(
            f"batch_size {batch_size} is too small for {ranks} ranks: a step needs "
            f"{MIN_SAMPLES_PER_RANK} samples per rank",
            f"raise batch_size to {MIN_SAMPLES_PER_RANK * ranks} or use at most "
            f"{batch_size // MIN_SAMPLES_PER_RANK} ranks",
        )


def epoch_batches(labels: NDArray[np.int64], sampler: str, batch_size: int, seed: int, epoch: int) -> list[Samples]:
    """Return the sample indices of each global batch of an epoch.

    Args:
        labels: [S], the class of each sample in the split.
        sampler: `all`, `balanced`, `oversample` or `sqrt` (`data.sampler`).
        batch_size: B, maximum samples per global batch.
        epoch: counted from 0.

    Returns:
        ceil(E / B) arrays whose sizes differ by at most one, with E samples in total. E is S, except for `balanced`
        (number of classes present times the size of the smallest) and `oversample` (times the size of the largest).
    """
    random = np.random.default_rng((seed, EPOCH_STREAM, epoch))
    samples = sample_indices(labels, sampler, random)
    random.shuffle(samples)
    return split_batches(samples, batch_size)


def sample_indices(labels: NDArray[np.int64], sampler: str, random: np.random.Generator) -> Samples:
    """Return the indices of the samples in an epoch, in order of class, as selected by `sampler` (`data.sampler`)."""
    if sampler == "all":
        return np.arange(len(labels))
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    numbers = sampled_counts(np.array([len(m) for m in members]), sampler)
    return np.concatenate([repeat_and_sample(m, n, random) for m, n in zip(members, numbers.tolist(), strict=True)])


def sampled_counts(counts: NDArray[np.int64], sampler: str) -> NDArray[np.int64]:
    """Return how many samples of each class an epoch has; `counts` are those of the split, all positive."""
    if sampler == "all":
        return counts
    if sampler == "balanced":
        return np.full(len(counts), counts.min())
    if sampler == "oversample":
        return np.full(len(counts), counts.max())
    assert sampler == "sqrt", sampler
    return apportion(int(counts.sum()), np.sqrt(counts))


def repeat_and_sample(members: Samples, number: int, random: np.random.Generator) -> Samples:
    """Return `number` samples: every member equally often, and a random subset of the members for the remainder."""
    repeats, rest = divmod(number, len(members))
    return np.concatenate([np.tile(members, repeats), random.permutation(members)[:rest]])


def apportion(total: int, weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return integers proportional to `weights` that sum to `total` (largest remainder method)."""
    exact = total * weights / weights.sum()
    whole: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    order = np.argsort(whole - exact, kind="stable")
    whole[order[: total - whole.sum()]] += 1
    return whole


def split_batches(samples: Samples, batch_size: int) -> list[Samples]:
    """Split samples, in order, into batches of at most `batch_size` whose lengths differ by at most one."""
    batches: list[Samples] = np.array_split(samples, math.ceil(len(samples) / batch_size))
    return batches


def rank_slice(size: int, rank: int, ranks: int) -> tuple[int, int]:
    """Return the start and end (exclusive) of a rank's slice of `size` rows; slice sizes differ by at most one."""
    rows, more = divmod(size, ranks)
    first = rank * rows + min(rank, more)
    return first, first + rows + (rank < more)


def stratified_holdout(labels: NDArray[np.int64], fraction: float, seed: int) -> tuple[Samples, Samples]:
    """Randomly split samples by class and return the sorted indices of the train and validation parts.

    `fraction` of each class goes to validation; a class with two or more samples has at least one in each part.
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
    """Yield the other samples of the same class, in the random order in which they may replace `sample` in an epoch."""
    others = np.flatnonzero(labels == labels[sample])
    for other in np.random.default_rng((seed, REPLACEMENT_STREAM, epoch, sample)).permutation(others).tolist():
        if other != sample:
            yield other
