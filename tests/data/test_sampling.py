"""Sample order is a pure function of seed, epoch, labels, sampler and batch size; ranks only slice it."""

from __future__ import annotations

import time
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from adadf_dist.data.sampling import (
    apportion,
    epoch_batches,
    rank_slice,
    replacement_candidates,
    split_batches,
    stratified_holdout,
)

LABELS = np.repeat([0, 1, 2, 3], [50, 30, 7, 13])


def epoch(sampler: str, number: int = 0, seed: int = 0, batch_size: int = 16) -> list[int]:
    return np.concatenate(epoch_batches(LABELS, sampler, batch_size, seed, number)).tolist()


def test_all_visits_each_sample_once_in_a_new_order_each_epoch() -> None:
    first, second = epoch("all"), epoch("all", 1)
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second
    assert first == epoch("all")
    assert first != epoch("all", seed=1)
    assert first != list(range(100))


@pytest.mark.parametrize(("sampler", "counts"), [("balanced", [7, 7, 7, 7]), ("oversample", [50, 50, 50, 50])])
def test_class_counts_of_each_sampler(sampler: str, counts: list[int]) -> None:
    drawn = epoch(sampler)
    assert np.bincount(LABELS[drawn]).tolist() == counts


def test_balanced_redraws_each_epoch_without_repeats() -> None:
    first, second = epoch("balanced"), epoch("balanced", 1)
    assert len(set(first)) == len(first)
    assert set(first) != set(second)


def test_oversample_repeats_samples_of_a_class_equally() -> None:
    times = Counter(epoch("oversample"))
    rare = [times[i] for i in range(80, 87)]  # 7 samples for 50 places
    assert sum(rare) == 50
    assert set(rare) == {7, 8}
    assert {times[i] for i in range(50)} == {1}


def test_sqrt_sampler_shares() -> None:
    drawn = epoch("sqrt")
    assert len(drawn) == 100
    roots = np.sqrt([50, 30, 7, 13])
    wanted = 100 * roots / roots.sum()
    assert np.abs(np.bincount(LABELS[drawn]) - wanted).max() < 1
    common = [i for i in drawn if i < 50]
    assert len(set(common)) == len(common)  # no sample twice before its class is exhausted


def test_apportion_sums_to_its_total() -> None:
    for total in range(1, 50):
        shares = apportion(total, np.array([1.0, 2.0, 4.5]))
        assert shares.sum() == total
        assert np.abs(shares - total * np.array([1, 2, 4.5]) / 7.5).max() < 1


@pytest.mark.parametrize("weights", [[1, 2, 5, 8], [3, 3, 9, 1], [1] * 32, [4, 1, 1, 1, 1] * 4])
def test_apportion_gives_the_largest_remainders_one_more(weights: list[int]) -> None:
    """Hamilton's method in exact arithmetic; of equal remainders the earlier class comes first."""
    for total in range(1, 70):
        exact = [Fraction(total * weight, sum(weights)) for weight in weights]
        wanted = [int(share) for share in exact]
        ranking = sorted(range(len(weights)), key=lambda c: (wanted[c] - exact[c], c))
        for c in ranking[: total - sum(wanted)]:
            wanted[c] += 1
        assert apportion(total, np.array(weights, dtype=np.float64)).tolist() == wanted


@pytest.mark.parametrize(("samples", "batch_size"), [(100, 16), (100, 100), (101, 100), (7, 64), (64, 64), (1, 2)])
def test_batch_sizes_differ_by_at_most_one(samples: int, batch_size: int) -> None:
    sizes = [len(b) for b in epoch_batches(np.zeros(samples, dtype=np.int64), "all", batch_size, 0, 0)]
    assert len(sizes) == -(-samples // batch_size)
    assert sum(sizes) == samples
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= batch_size


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8])
def test_rank_slices_concatenate_to_the_batch(ranks: int) -> None:
    for size in range(1, 40):
        pieces = [range(*rank_slice(size, rank, ranks)) for rank in range(ranks)]
        assert [i for piece in pieces for i in piece] == list(range(size))
        assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


def test_hold_out_is_stratified_and_seeded() -> None:
    train, validation = stratified_holdout(LABELS, 0.1, 0)
    assert sorted([*train, *validation]) == list(range(100))
    assert np.bincount(LABELS[validation]).tolist() == [5, 3, 1, 1]
    assert not np.array_equal(validation, stratified_holdout(LABELS, 0.1, 1)[1])
    assert np.array_equal(validation, stratified_holdout(LABELS, 0.1, 0)[1])


def test_hold_out_keeps_a_sample_of_each_class_on_both_sides() -> None:
    train, validation = stratified_holdout(np.array([0, 0, 1, 1, 1]), 0.9, 0)
    assert set(np.array([0, 0, 1, 1, 1])[train]) == {0, 1}
    assert set(np.array([0, 0, 1, 1, 1])[validation]) == {0, 1}


@pytest.mark.parametrize("sample", [0, 49, 83, 99])
def test_substitute_is_another_sample_of_the_class(sample: int) -> None:
    others = [i for i in range(100) if LABELS[i] == LABELS[sample] and i != sample]
    orders = [list(replacement_candidates(LABELS, sample, 0, number)) for number in range(3)]
    assert all(sorted(order) == others for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert list(replacement_candidates(LABELS, sample, 1, 0)) != orders[0]


def test_random_numbers_equal_those_of_earlier_versions() -> None:
    """A run may resume mid-epoch after an upgrade, so random streams are part of a checkpoint's meaning."""
    for seed, number in ((0, 0), (7, 3)):
        order = np.arange(100)
        np.random.default_rng((seed, 1, number)).shuffle(order)
        assert epoch("all", number, seed) == order.tolist()
        row = np.random.default_rng((seed, 5, number, 82)).permutation(np.arange(80, 87)).tolist()
        assert list(replacement_candidates(LABELS, 82, seed, number)) == [i for i in row if i != 82]
        first = np.random.default_rng((seed, 2)).permutation(np.arange(50))[:5]
        assert stratified_holdout(LABELS, 0.1, seed)[1][:5].tolist() == sorted(first.tolist())


def test_evaluation_batches_hold_each_sample_once() -> None:
    assert np.concatenate(split_batches(np.arange(29), 8)).tolist() == list(range(29))


def test_affectnet_epoch_is_planned_within_a_second() -> None:
    labels = np.random.default_rng(0).choice(7, 283_901, p=[0.26, 0.47, 0.09, 0.05, 0.02, 0.02, 0.09])
    began = time.process_time()
    epoch_batches(labels, "balanced", 64, 0, 0)
    assert time.process_time() - began < 5  # generous: a guard against a loop over samples, not a benchmark
