"""Averages over training samples against plain loops, and their sums over ranks."""

from __future__ import annotations

import pytest
import torch

from adadf_dist.method.target_averages import MeanFused, SampleAverages
from tests.helpers.ranks import single_process_world
from tests.method.test_class_distributions import Rank


def test_mean_fused_is_the_mean_of_the_last_epoch() -> None:
    average = MeanFused(3, single_process_world())
    assert average.mean.tolist() == [1 / 3] * 3
    for epoch in ([[[0.2, 0.5, 0.3]], [[0.6, 0.1, 0.3], [0.1, 0.1, 0.8]]], [[[0.0, 0.5, 0.5]]]):
        for batch in epoch:
            average.observe(torch.tensor(batch, dtype=torch.float32, requires_grad=True))
        average.finalize_epoch()
        rows = [row for batch in epoch for row in batch]
        assert average.mean.tolist() == pytest.approx([sum(row[k] for row in rows) / len(rows) for k in range(3)])
        assert not average.mean.requires_grad


def test_sample_averages_follow_a_loop_over_epochs() -> None:
    """Drawn once, twice in an epoch, later only, and never."""
    momentum = 0.75
    average = SampleAverages(4, 2, momentum, single_process_world())
    epochs = [
        [(0, [0.5, 0.5]), (1, [0.25, 0.75]), (1, [0.75, 0.25])],
        [(1, [1.0, 0.0]), (2, [0.125, 0.875])],
        [(0, [0.0, 1.0]), (1, [0.5, 0.5]), (2, [0.25, 0.75])],
    ]
    wanted: dict[int, list[float]] = {}
    for epoch in epochs:
        before = average.averages.clone()
        for sample, row in epoch:
            average.observe(torch.tensor([sample]), torch.tensor([row]).log())
        assert torch.equal(average.averages, before)  # until the epoch ends
        average.finalize_epoch()
        for sample in {sample for sample, _ in epoch}:
            rows = [row for number, row in epoch if number == sample]
            mean = [sum(row[k] for row in rows) / len(rows) for k in range(2)]
            last = wanted.get(sample)
            wanted[sample] = (
                mean if last is None else [momentum * a + (1 - momentum) * m for a, m in zip(last, mean, strict=True)]
            )
        for sample in range(4):
            assert average.averages[sample].tolist() == pytest.approx(wanted.get(sample, [0.0, 0.0]), abs=1e-7)
    assert 3 not in wanted


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_restored_sums_count_once_over_ranks(ranks: int) -> None:
    """One row before the checkpoint, then one per rank: the sums over ranks have each row once."""
    row = torch.tensor([[0.25, 0.75]])
    fused, samples = MeanFused(2, single_process_world()), SampleAverages(3, 2, 0.5, single_process_world())
    fused.observe(row)
    samples.observe(torch.tensor([1]), row.log())
    total_fused, total_samples = torch.zeros(3, dtype=torch.float64), torch.zeros(3, 3)
    for rank in range(ranks):
        own_fused, own_samples = MeanFused(2, Rank(rank)), SampleAverages(3, 2, 0.5, Rank(rank))
        own_fused.observe(row.expand(5, 2))  # replaced by the restored state
        own_fused.load_state_dict(fused.state_dict())
        own_samples.load_state_dict(samples.state_dict())
        own_fused.observe(row)
        own_samples.observe(torch.tensor([rank]), row.log())
        total_fused += own_fused.state_dict()["pending"]
        total_samples += own_samples.state_dict()["pending"]
    assert total_fused.tolist() == pytest.approx([0.25 * (1 + ranks), 0.75 * (1 + ranks), 1 + ranks])
    assert total_samples[:, 2].tolist() == [1, 1 + (ranks > 1), ranks > 2]
