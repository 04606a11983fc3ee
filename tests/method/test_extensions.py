"""The extensions of the losses (docs/method.md) against plain loops, closed forms and finite differences."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from adadf_dist.config.schema import ClassDistributionConfig, LossConfig
from adadf_dist.method.class_distributions import class_distributions
from adadf_dist.method.losses import (
    BatchSlice,
    Losses,
    LossWeights,
    TargetInputs,
    adadf_loss,
    logit_offset,
    raise_label_prob,
)
from adadf_dist.method.model import Output
from tests.helpers.ranks import single_process_world
from tests.method.test_losses import random_case

Row = list[float]
RAMP = LossWeights(0.7, 0.9)


def loss_of(output: Output, labels: Tensor, inputs: TargetInputs, config: LossConfig) -> Losses:
    return adadf_loss(output, labels, inputs, RAMP, config, (single_process_world(), BatchSlice(0, len(labels))))


def random_rows(rows: int, classes: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, classes, generator=generator, dtype=torch.float64).softmax(dim=1)


def softmax(logits: Row) -> Row:
    powers = [math.exp(z) for z in logits]
    return [p / sum(powers) for p in powers]


def divergence(p: Row, q: Row) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def extended_case() -> tuple[Output, Tensor, TargetInputs, LossConfig, dict[str, Any]]:
    """All extensions of Ada-DF on: the inputs of the loss, and the numbers that a naive recomputation starts from."""
    output, labels, classes = random_case(9, 4, 7)
    prior, mean = [0.5, 0.3, 0.15, 0.05], [0.4, 0.1, 0.3, 0.2]
    averages = random_rows(9, 4, 1)
    averages[[2, 5]] = 0.0  # two samples without an average
    config = LossConfig(label_smoothing=0.1, logit_adjustment=0.8, target_adjustment=1.5, min_label_prob=0.45)
    inputs = TargetInputs(
        classes,
        prior_offset=logit_offset(torch.tensor(prior, dtype=torch.float64), 0.8),
        fused_offset=logit_offset(torch.tensor(mean, dtype=torch.float64), 1.5),
        sample_averages=averages,
    )
    numbers = {"prior": prior, "mean": mean, "averages": averages.tolist()}
    return output, labels, inputs, config, numbers


def test_losses_with_all_extensions_equal_a_naive_recomputation() -> None:
    output, labels, inputs, config, numbers = extended_case()
    losses = loss_of(output, labels, inputs, config)
    weights, classes = losses.attention_weights.tolist(), inputs.class_distributions.tolist()  # eq 11 is unchanged
    entropies, divergences, raised = [], [], 0
    for i, y in enumerate(labels.tolist()):
        auxiliary, target = output.auxiliary_logits[i].tolist(), output.target_logits[i].tolist()
        p = softmax([z + 0.8 * math.log(f) for z, f in zip(auxiliary, numbers["prior"], strict=True)])
        entropies.append(-sum((0.9 * (k == y) + 0.1 / 4) * math.log(p[k]) for k in range(4)))
        label_distribution = numbers["averages"][i] if i not in (2, 5) else softmax(auxiliary)
        fused = [weights[i] * d + (1 - weights[i]) * v for d, v in zip(classes[y], label_distribution, strict=True)]
        if fused[y] < 0.45:
            raised += 1
            fused = [0.45 if k == y else v * 0.55 / (1 - fused[y]) for k, v in enumerate(fused)]
        assert losses.fused_distributions[i].tolist() == pytest.approx(fused, abs=1e-12)
        q = softmax([z + 1.5 * math.log(m) for z, m in zip(target, numbers["mean"], strict=True)])
        divergences.append(divergence(fused, q))
    assert 0 < raised < 9  # both cases occur
    assert losses.per_sample.tolist() == pytest.approx(divergences, abs=1e-12)
    assert losses.cross_entropy.item() == pytest.approx(sum(entropies) / 9, abs=1e-12)
    assert losses.kl_divergence.item() == pytest.approx(sum(divergences) / 9, abs=1e-12)
    total = (0.7 * sum(divergences) + 0.9 * sum(entropies)) / 9
    assert losses.total.item() == pytest.approx(total + losses.rank_regularization.item(), abs=1e-12)


@pytest.mark.parametrize("detached", [False, True])
def test_gradients_with_all_extensions_equal_finite_differences(detached: bool) -> None:
    output, labels, inputs, config, _ = extended_case()
    config = replace(config, detach_targets=detached, rank_margin=0.9)

    def total(*parts: Tensor) -> Tensor:
        return loss_of(Output(*parts), labels, inputs, config).total

    if not detached:
        assert torch.autograd.gradcheck(total, tuple(output))
        return
    # detached, only the losses' own terms reach the target branch: prediction minus target, over N
    total(*output).backward()  # type: ignore[no-untyped-call]
    logits, offset = output.target_logits, inputs.fused_offset
    assert offset is not None
    fused = loss_of(output, labels, inputs, config).fused_distributions
    wanted = 0.7 * ((logits + offset).softmax(dim=1) - fused)
    torch.testing.assert_close(logits.grad, wanted.detach() / 9, rtol=0, atol=1e-12)


def test_average_stops_the_gradient_of_the_label_distribution() -> None:
    """With an average for every sample, eq 12 reaches the auxiliary branch through its attention only."""
    output, labels, classes = random_case(6, 4, 1)
    inputs = TargetInputs(classes, sample_averages=random_rows(6, 4, 3))
    loss_of(output, labels, inputs, LossConfig()).kl_divergence.backward()  # type: ignore[no-untyped-call]
    assert output.auxiliary_logits.grad is None or output.auxiliary_logits.grad.abs().max() == 0
    assert output.auxiliary_attention.grad is not None and output.auxiliary_attention.grad.abs().max() > 0


def test_extensions_without_effect_change_no_bit() -> None:
    """Averages of no sample yet, zero offsets, and a minimum that every fused distribution exceeds."""
    output, labels, classes = random_case(12, 5, 2)
    plain = loss_of(output, labels, TargetInputs(classes), LossConfig())
    lowest = plain.fused_distributions.gather(1, labels.unsqueeze(1)).min().item()
    zeros = torch.zeros(5, dtype=torch.float64)
    inputs = TargetInputs(classes, zeros, zeros, sample_averages=torch.zeros(12, 5))
    extended = loss_of(output, labels, inputs, LossConfig(min_label_prob=lowest / 2))
    assert all(torch.equal(a, b) for a, b in zip(plain, extended, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_label_prob_is_raised_no_further_than_needed(dtype: torch.dtype) -> None:
    """Rows below the minimum get it, keep the proportions of other classes, and sum to 1; others keep every bit."""
    rows = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=dtype)
    rows.requires_grad_()
    raised = raise_label_prob(rows, torch.zeros(4, dtype=torch.int64), 0.4)
    wanted = [[0.4, 0.4, 0.2], [0.5, 0.25, 0.25], [1, 0, 0], [0.4, 0.6, 0]]
    torch.testing.assert_close(raised.detach(), torch.tensor(wanted, dtype=dtype), rtol=0, atol=1e-6)
    assert torch.equal(raised[1:3], rows[1:3])
    (gradient,) = torch.autograd.grad(raised[:, 1].sum(), rows)
    # F'_1 = (1 - a) F_1 / (1 - F_0) where raised, F_1 elsewhere
    wanted = [[0.6 * 0.6 / 0.81, 0.6 / 0.9, 0], [0, 1, 0], [0, 1, 0], [0.6, 0.6, 0]]
    torch.testing.assert_close(gradient, torch.tensor(wanted, dtype=dtype), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("smoothing", "tau"), [(0.0, 0.0), (0.2, 0.0), (0.0, 1.3), (0.2, 1.3)])
@pytest.mark.parametrize("supervision", ["one_hot", "votes"])
def test_baseline_losses_equal_a_naive_recomputation(supervision: str, smoothing: float, tau: float) -> None:
    output, labels, classes = random_case(7, 3, 5)
    logits, prior, votes = output.target_logits, [0.7, 0.2, 0.1], random_rows(7, 3, 6)
    ones = torch.ones(7, dtype=torch.float64)
    inputs = TargetInputs(classes, logit_offset(torch.tensor(prior, dtype=torch.float64), tau))
    if supervision == "votes":
        inputs = inputs._replace(votes=votes)
    config = LossConfig(supervision=supervision, label_smoothing=smoothing, logit_adjustment=tau)  # type: ignore[arg-type]
    losses = loss_of(Output(logits, logits, ones, ones), labels, inputs, config)
    for i, y in enumerate(labels.tolist()):
        wanted = votes[i].tolist() if supervision == "votes" else [float(k == y) for k in range(3)]
        wanted = [(1 - smoothing) * v + smoothing / 3 for v in wanted]
        p = softmax([z + tau * math.log(f) for z, f in zip(logits[i].tolist(), prior, strict=True)])
        entropy = -sum(v * math.log(q) for v, q in zip(wanted, p, strict=True))
        assert losses.per_sample[i].item() == pytest.approx(entropy, abs=1e-12)
        assert losses.fused_distributions[i].tolist() == pytest.approx(wanted, abs=1e-12)
    assert losses.total.item() == losses.cross_entropy.item()
    assert losses.total.item() == pytest.approx(losses.per_sample.sum().item() / 7, abs=1e-12)


def test_relative_threshold_lowers_the_threshold_to_a_part_of_the_mean_degree() -> None:
    """Degrees 0.9, 0.5, 0.1 and no samples: the mean is 0.5."""
    counts = torch.tensor([10.0, 4.0, 2.0, 0.0], dtype=torch.float64)
    degrees = [0.9, 0.5, 0.1, 0.0]
    sums = torch.zeros(4, 4, dtype=torch.float64)
    for c in range(3):
        sums[c] = (1 - degrees[c]) / 3 * counts[c]
        sums[c, c] = degrees[c] * counts[c]
    for relative, wanted in ((0.0, [True, False, False]), (0.9, [True, True, False]), (0.19, [True, True, True])):
        config = ClassDistributionConfig(threshold=0.7, relative_threshold=relative)
        found = class_distributions(sums, counts, config)
        assert found.threshold_met.tolist() == [*wanted, False]
        for c in range(4):  # the constant of eq 7 keeps t
            row = (
                (sums[c] / counts[c]).tolist() if found.threshold_met[c] else [0.7 if k == c else 0.1 for k in range(4)]
            )
            assert found.distributions[c].tolist() == pytest.approx(row, abs=1e-15)
    low = ClassDistributionConfig(threshold=0.2, relative_threshold=1.0)  # never above t
    assert class_distributions(sums, counts, low).threshold_met.tolist() == [True, True, False, False]
