"""Equations 4 to 7 against golden vectors and a plain recomputation."""

from __future__ import annotations

import json

import pytest
import torch

from adadf_dist.config.schema import ClassDistributionConfig
from adadf_dist.method.class_distributions import ClassDistributions, sharpen, threshold_distributions
from tests.helpers.ranks import single_process_world
from tests.method.test_losses import GOLDEN, needs_golden


@needs_golden
@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("off_diagonal", ["normalized", "paper"])
def test_class_distributions_equal_golden_vectors(number: int, off_diagonal: str) -> None:
    case = json.loads(GOLDEN.read_text())["class_distributions"][number]
    config = ClassDistributionConfig(threshold=case["threshold"], off_diagonal=off_diagonal)  # type: ignore[arg-type]
    classes = ClassDistributions(case["num_classes"], config, single_process_world())
    logits = torch.tensor(case["auxiliary_logits"], dtype=torch.float64)
    labels = torch.tensor(case["labels"])
    for rows in torch.arange(len(labels)).split(50):  # in several batches, the last one smaller
        classes.observe(logits[rows], labels[rows])
    commit = classes.finalize_epoch()
    expected = case["expected"]
    wanted = "class_distributions" if off_diagonal == "normalized" else "published_code_class_distributions"
    for value, name in ((commit.means, "class_means"), (commit.distributions, wanted)):
        truth = torch.tensor(expected[name], dtype=torch.float64)
        torch.testing.assert_close(value, truth, rtol=0, atol=1e-9)
    assert commit.threshold_met.tolist() == expected["threshold_met"]
    torch.testing.assert_close(classes.targets, commit.distributions, rtol=0, atol=0)


@pytest.mark.parametrize(("threshold", "rest", "row_sum"), [(0.7, 0.4, 1.1), (0.5, 0.4, 0.9), (0.6, 0.4, 1.0)])
def test_published_threshold_distribution_does_not_sum_to_one(threshold: float, rest: float, row_sum: float) -> None:
    published = ClassDistributionConfig(threshold=threshold, off_diagonal="paper")
    rows = threshold_distributions(7, published)
    assert rows.sum(dim=1).tolist() == pytest.approx([row_sum] * 7)
    assert rows[0, 1].item() == pytest.approx(rest / 6)
    ours = threshold_distributions(7, ClassDistributionConfig(threshold=threshold))
    assert ours.sum(dim=1).tolist() == pytest.approx([1.0] * 7)
    assert ours.diagonal().tolist() == [threshold] * 7


def test_distribution_before_first_commit_and_for_unseen_classes() -> None:
    config = ClassDistributionConfig(threshold=0.5)
    classes = ClassDistributions(3, config, single_process_world())
    assert classes.targets[1].tolist() == [0.25, 0.5, 0.25]
    classes.observe(torch.tensor([[5.0, 0.0, 0.0]]), torch.tensor([0]))
    commit = classes.finalize_epoch()
    assert commit.threshold_met.tolist() == [True, False, False]
    assert commit.counts.tolist() == [1, 0, 0]
    assert commit.distributions[2].tolist() == [0.25, 0.25, 0.5]


def test_class_degree_at_the_threshold_is_enough() -> None:
    """Equation 5 requires at least t."""
    classes = ClassDistributions(2, ClassDistributionConfig(threshold=0.5), single_process_world())
    classes.observe(torch.zeros(1, 2), torch.tensor([0]))
    assert classes.finalize_epoch().threshold_met.tolist() == [True, False]


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_sharpening_normalizes_rows(temperature: float) -> None:
    """An asymmetric matrix, so that rows and columns have different sums."""
    rows = [[0.7, 0.2, 0.1], [0.25, 0.6, 0.15], [0.05, 0.05, 0.9]]
    expected = []
    for row in rows:
        powered = [value ** (1 / temperature) for value in row]
        expected += [value / sum(powered) for value in powered]
    sharpened = sharpen(torch.tensor(rows, dtype=torch.float64), temperature)
    assert sharpened.flatten().tolist() == pytest.approx(expected, abs=1e-14)


def test_committed_distributions_are_sharpened() -> None:
    config = ClassDistributionConfig(threshold=0.6, sharpen_temperature=0.5)
    classes = ClassDistributions(3, config, single_process_world())
    classes.observe(torch.tensor([[0.8, 0.15, 0.05]], dtype=torch.float64).log(), torch.tensor([0]))
    rows = classes.finalize_epoch().distributions
    for row, before in ((0, [0.8, 0.15, 0.05]), (1, [0.2, 0.6, 0.2])):  # the class mean, and a threshold row
        squares = [value**2 for value in before]
        assert rows[row].tolist() == pytest.approx([v / sum(squares) for v in squares])


def test_each_commit_uses_only_its_own_samples() -> None:
    """Each epoch's means and counts are of its own samples, whatever earlier epochs saw."""
    classes = ClassDistributions(2, ClassDistributionConfig(threshold=0.6), single_process_world())
    for epoch in ([[0.9, 0.1], [0.7, 0.3]], [[0.2, 0.8]], [[0.5, 0.5], [0.1, 0.9], [0.3, 0.7]]):
        classes.observe(torch.tensor(epoch, dtype=torch.float64).log(), torch.zeros(len(epoch), dtype=torch.int64))
        commit = classes.finalize_epoch()
        means = [sum(row[k] for row in epoch) / len(epoch) for k in range(2)]
        assert commit.counts.tolist() == [len(epoch), 0]
        assert commit.means[0].tolist() == pytest.approx(means, abs=1e-14)
        assert commit.threshold_met[0].item() == (means[0] >= 0.6)


def test_half_precision_logits_are_averaged_in_double() -> None:
    logits = torch.randn(400, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.zeros(400, dtype=torch.int64)
    classes = ClassDistributions(5, ClassDistributionConfig(), single_process_world())
    for i in range(400):
        classes.observe(logits[i : i + 1], labels[i : i + 1])
    wanted = logits.double().softmax(dim=1).mean(dim=0)
    torch.testing.assert_close(classes.finalize_epoch().means[0], wanted, rtol=0, atol=1e-14)


class Rank:
    """One of several ranks, of which only its own sums matter."""

    def __init__(self, rank: int, device: str = "cpu") -> None:
        self.rank = rank
        self.device = torch.device(device)

    def all_reduce_sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_restored_sums_count_once_over_ranks(ranks: int) -> None:
    """Four samples before the checkpoint, then one per rank: the sums over ranks have each sample once."""
    config = ClassDistributionConfig(threshold=0.6)
    before = ClassDistributions(2, config, single_process_world())
    before.observe(torch.tensor([[0.9, 0.1]] * 4, dtype=torch.float64).log(), torch.tensor([0, 0, 0, 1]))
    total = torch.zeros(2, 3, dtype=torch.float64)
    for rank in range(ranks):
        classes = ClassDistributions(2, config, Rank(rank))
        classes.observe(torch.zeros(5, 2), torch.zeros(5, dtype=torch.int64))  # replaced by the restored state
        classes.load_state_dict(before.state_dict())
        classes.observe(torch.tensor([[0.3, 0.7]], dtype=torch.float64).log(), torch.tensor([1]))
        total += classes.state_dict()["pending"]
    wanted = [2.7, 0.3, 3, 0.9 + 0.3 * ranks, 0.1 + 0.7 * ranks, 1 + ranks]
    assert total.flatten().tolist() == pytest.approx(wanted, abs=1e-12)


def test_observed_sums_stay_on_their_device() -> None:
    classes = ClassDistributions(3, ClassDistributionConfig(), Rank(0, "meta"))
    classes.observe(torch.zeros(4, 3, device="meta"), torch.zeros(4, dtype=torch.int64, device="meta"))
    assert classes.targets.device.type == "meta"


@pytest.mark.parametrize(("source", "own_pass"), [("running", False), ("second_pass", True)])
def test_only_source_pass_needs_an_extra_pass(source: str, own_pass: bool) -> None:
    config = ClassDistributionConfig(source=source)  # type: ignore[arg-type]
    assert ClassDistributions(7, config, single_process_world()).needs_extra_pass is own_pass
