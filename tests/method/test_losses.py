"""Equations 3 and 8 to 16 against golden vectors, plain loops and finite differences."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from adadf_dist.config.schema import LossConfig
from adadf_dist.method.losses import (
    BatchSlice,
    Losses,
    LossWeights,
    TargetInputs,
    adadf_loss,
    normalize_attention,
    ramp_weights,
    rank_regularization,
)
from adadf_dist.method.model import Output
from tests.conftest import SHARED
from tests.helpers.ranks import single_process_world

GOLDEN = SHARED / "golden" / "ada_df_golden.json"
needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason="the golden vectors are not here")


def loss_of(output: Output, labels: Tensor, classes: Tensor, ramp: LossWeights, config: LossConfig) -> Losses:
    inputs = TargetInputs(classes)
    return adadf_loss(output, labels, inputs, ramp, config, (single_process_world(), BatchSlice(0, len(labels))))


def random_case(rows: int, classes: int, seed: int, scale: float = 2.0) -> tuple[Output, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    logits = [(scale * draw(rows, classes)).requires_grad_() for _ in range(2)]
    attention = [draw(rows).sigmoid().requires_grad_() for _ in range(2)]
    labels = torch.randint(classes, (rows,), generator=generator)
    return Output(*logits, *attention), labels, (2 * draw(classes, classes)).softmax(dim=1)


def naive_loss(
    output: Output, labels: Tensor, classes: Tensor, ramp: LossWeights, config: LossConfig
) -> dict[str, Any]:
    """Equations 3 and 8 to 14 in plain Python, one number at a time."""
    auxiliary, target, a, b = (t.tolist() for t in output)
    y, d, n = labels.tolist(), classes.tolist(), len(labels)

    def softmax(z: list[float]) -> list[float]:
        top = max(z)
        e = [math.exp(v - top) for v in z]
        return [v / sum(e) for v in e]

    w = [(a[i] + b[i]) / 2 for i in range(n)]
    ce = sum(-math.log(softmax(auxiliary[i])[y[i]]) for i in range(n)) / n
    m = math.floor(Fraction(str(config.rank_ratio)) * n)
    ordered = sorted(w, reverse=True)
    rr = 0.0
    if 0 < m < n:
        rr = max(0.0, config.rank_margin - (sum(ordered[:m]) / m - sum(ordered[m:]) / (n - m)))
    spread = max(w) - min(w)
    scaled = [1.0 if spread == 0 else (v - min(w)) / spread * (1 - config.lambda_min) + config.lambda_min for v in w]
    kl, fused = 0.0, []
    for i in range(n):
        label_distribution = softmax(auxiliary[i])
        part = {"fused": scaled[i], "label": 0.0, "class": 1.0}[config.supervision]
        f = [part * d[y[i]][k] + (1 - part) * label_distribution[k] for k in range(len(d))]
        kl += sum(f[k] * math.log(f[k] / softmax(target[i])[k]) for k in range(len(d))) / n
        fused.append(f)
    total = ramp.kl * kl + ramp.ce * ce + rr
    each = [
        sum(f[k] * math.log(f[k] / softmax(z)[k]) for k in range(len(d))) for f, z in zip(fused, target, strict=True)
    ]
    return {"total": total, "ce": ce, "kl": kl, "rr": rr, "weights": scaled, "fused": fused, "per_sample": each}


@needs_golden
@pytest.mark.parametrize("number", range(3))
def test_losses_and_gradients_equal_golden_vectors(number: int) -> None:
    case = json.loads(GOLDEN.read_text())["loss"][number]
    expected = case["expected"]

    def tensor(name: str) -> Tensor:
        return torch.tensor(case[name], dtype=torch.float64, requires_grad=True)

    names = ("auxiliary_logits", "target_logits", "auxiliary_attention", "target_attention")
    output = Output(*(tensor(name) for name in names))
    config = LossConfig(
        lambda_min=case["lambda_min"],
        rank_margin=case["rank_margin"],
        rank_ratio=case["rank_ratio"],
        epoch_threshold=case["epoch_threshold"],
    )
    ramp = ramp_weights(case["epoch"], case["epoch_threshold"])
    classes = torch.tensor(case["class_distributions"], dtype=torch.float64)
    losses = loss_of(output, torch.tensor(case["labels"]), classes, ramp, config)
    losses.total.backward()
    assert ramp.kl == pytest.approx(expected["kl_weight"], abs=1e-9)
    assert ramp.ce == pytest.approx(expected["ce_weight"], abs=1e-9)
    for name in ("total", "cross_entropy", "kl_divergence", "rank_regularization"):
        assert getattr(losses, name).item() == pytest.approx(expected[name], abs=1e-9), name
    pairs = {"attention_weights": losses.attention_weights, "fused_distributions": losses.fused_distributions}
    pairs |= {f"grad_{name}": getattr(output, name).grad for name in names}
    for name, value in pairs.items():
        wanted = torch.tensor(expected[name], dtype=torch.float64)
        torch.testing.assert_close(value.detach(), wanted, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("supervision", ["fused", "label", "class"])
@pytest.mark.parametrize(("rows", "classes", "margin"), [(16, 7, 0.07), (13, 8, 0.9), (5, 3, 0.5), (2, 2, 0.5)])
def test_losses_equal_naive_recomputation(supervision: str, rows: int, classes: int, margin: float) -> None:
    config = LossConfig(supervision=supervision, rank_margin=margin, lambda_min=0.1)  # type: ignore[arg-type]
    for seed, ramp in enumerate([LossWeights(0.3, 1.0), LossWeights(1.0, 0.4)]):
        output, labels, rows_of_classes = random_case(rows, classes, seed)
        losses = loss_of(output, labels, rows_of_classes, ramp, config)
        naive = naive_loss(output, labels, rows_of_classes, ramp, config)
        assert losses.total.item() == pytest.approx(naive["total"], abs=1e-12)
        assert losses.cross_entropy.item() == pytest.approx(naive["ce"], abs=1e-12)
        assert losses.kl_divergence.item() == pytest.approx(naive["kl"], abs=1e-12)
        assert losses.rank_regularization.item() == pytest.approx(naive["rr"], abs=1e-12)
        assert losses.attention_weights.tolist() == pytest.approx(naive["weights"], abs=1e-12)
        assert losses.per_sample.tolist() == pytest.approx(naive["per_sample"], abs=1e-12)
        assert losses.fused_distributions.flatten().tolist() == pytest.approx(
            [v for row in naive["fused"] for v in row], abs=1e-12
        )


@pytest.mark.parametrize("supervision", ["fused", "label", "class", "one_hot"])
def test_gradients_equal_finite_differences(supervision: str) -> None:
    output, labels, classes = random_case(6, 4, 3)
    config = LossConfig(supervision=supervision, rank_margin=0.9)  # type: ignore[arg-type]

    def total(*parts: Tensor) -> Tensor:
        return loss_of(Output(*parts), labels, classes, LossWeights(0.7, 0.9), config).total

    assert torch.autograd.gradcheck(total, tuple(output))


def test_detach_stops_the_gradient_through_the_fused_distribution() -> None:
    output, labels, classes = random_case(8, 5, 1)
    config = LossConfig(detach_targets=True, rank_margin=0.0)
    losses = loss_of(output, labels, classes, LossWeights(1.0, 0.0), config)
    losses.total.backward()
    assert output.auxiliary_logits.grad is not None
    assert output.auxiliary_logits.grad.abs().max() == 0  # its own loss has weight 0 here
    # the rest is the gradient of KL: prediction minus fused target, over N
    wanted = (output.target_logits.softmax(dim=1) - losses.fused_distributions).detach() / 8
    torch.testing.assert_close(output.target_logits.grad, wanted, rtol=0, atol=1e-12)


def test_one_hot_is_cross_entropy_of_the_target_branch() -> None:
    logits = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = [0, 1, 2, 3, 0, 1]
    ones = torch.ones(6, dtype=torch.float64)
    config = LossConfig(supervision="one_hot")
    output = Output(logits, logits, ones, ones)
    losses = loss_of(output, torch.tensor(labels), torch.eye(4), LossWeights(0.2, 0.3), config)
    naive = -sum(logits.softmax(1)[i, y].log().item() for i, y in enumerate(labels)) / 6
    assert losses.total.item() == pytest.approx(naive, abs=1e-12)  # no ramp: there is one branch
    each = [-math.log(math.exp(z[y]) / sum(map(math.exp, z))) for z, y in zip(logits.tolist(), labels, strict=True)]
    assert losses.per_sample.tolist() == pytest.approx(each, abs=1e-12)
    assert losses.fused_distributions.tolist() == [[float(k == y) for k in range(4)] for y in labels]
    assert losses.attention_weights.tolist() == [1.0] * 6
    assert losses.kl_divergence.item() == losses.rank_regularization.item() == 0.0
    assert not losses.per_sample.requires_grad


def test_equal_weights_normalize_to_one_with_finite_gradients() -> None:
    output, labels, classes = random_case(6, 4, 0)
    same = torch.full((6,), 0.5, dtype=torch.float64)
    equal = output._replace(
        auxiliary_attention=same.clone().requires_grad_(), target_attention=same.clone().requires_grad_()
    )
    losses = loss_of(equal, labels, classes, LossWeights(1, 1), LossConfig())
    losses.total.backward()
    assert losses.attention_weights.tolist() == [1.0] * 6
    assert equal.auxiliary_attention.grad is not None
    assert torch.isfinite(equal.auxiliary_attention.grad).all()


def test_ties_are_broken_by_position() -> None:
    """Of four equal weights, the first two are in the upper group."""
    attention = torch.tensor([0.5, 0.5, 0.5, 0.5], dtype=torch.float64, requires_grad=True)
    rank_regularization(attention, 0.5, 0.3).backward()
    assert attention.grad is not None
    assert attention.grad.tolist() == [-0.5, -0.5, 0.5, 0.5]
    tied = torch.tensor([0.2, 0.8, 0.2, 0.8], dtype=torch.float64, requires_grad=True)
    weights = normalize_attention(tied, tied, 0.0)
    # of tied extremes only the first carries the gradient; its weight stays 0 ...
    assert torch.autograd.grad(weights[0], tied, retain_graph=True)[0].tolist() == [0, 0, 0, 0]
    # ... and its duplicate moves against it, by 1 over the range
    moved = torch.autograd.grad(weights[2], tied)[0]
    torch.testing.assert_close(moved, torch.tensor([-1 / 0.6, 0, 1 / 0.6, 0], dtype=torch.float64))


@pytest.mark.parametrize(("rows", "ratio"), [(1, 0.7), (4, 0.2), (4, 1.0), (3, 0.0)])
def test_no_rank_regularization_when_a_group_is_empty(rows: int, ratio: float) -> None:
    attention = torch.rand(rows, dtype=torch.float64, requires_grad=True)
    loss = rank_regularization(attention, ratio, 0.9)
    loss.backward()
    assert loss.item() == 0
    assert attention.grad is not None
    assert attention.grad.abs().max() == 0


def exact_floor(ratio: str, rows: int) -> int:
    """floor(beta N) in exact decimal arithmetic."""
    return math.floor(Fraction(ratio) * rows)


@pytest.mark.parametrize(("ratio", "rows"), [("0.7", 10), ("0.7", 70), ("0.7", 190), ("0.29", 100), ("0.57", 100)])
def test_upper_group_size_is_exact(ratio: str, rows: int) -> None:
    """floor(0.7 x 70) is 49, although 0.7 * 70 is 48.999... in binary."""
    upper = exact_floor(ratio, rows)
    assert upper == float(ratio) * rows or math.floor(float(ratio) * rows) == upper - 1  # binary is mostly below
    attention = torch.zeros(rows, dtype=torch.float64)
    attention[:upper] = 1.0
    # margin - (1 - 0) is exactly 0 only where both groups are cut at `upper`
    assert rank_regularization(attention, float(ratio), 1.0).item() == 0.0


@pytest.mark.parametrize("ratio", ["0.1", "0.3", "0.5", "0.7", "0.9"])
def test_group_sizes_equal_exact_arithmetic(ratio: str) -> None:
    for rows in range(1, 300):
        upper = exact_floor(ratio, rows)
        attention = torch.arange(rows, 0, -1, dtype=torch.float64)
        expected = 0.0
        if 0 < upper < rows:  # means of rows .. rows-upper+1, and of rows-upper .. 1
            expected = 1000 - ((2 * rows - upper + 1) / 2 - (rows - upper + 1) / 2)
        assert rank_regularization(attention, float(ratio), 1000.0).item() == pytest.approx(expected, abs=1e-9)


def test_extreme_logits_stay_finite_in_float32() -> None:
    output, labels, classes = random_case(8, 4, 2, scale=300.0)
    single = Output(*(t.detach().float().requires_grad_() for t in output))
    losses = loss_of(single, labels, classes.float(), LossWeights(1, 1), LossConfig(supervision="label"))
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert all(torch.isfinite(t.grad).all() for t in single[:2] if t.grad is not None)


def test_ramps_by_hand() -> None:
    assert ramp_weights(1, 5) == pytest.approx((math.exp(-0.64), 1.0))
    assert ramp_weights(5, 5) == (1.0, 1.0)
    assert ramp_weights(10, 5) == pytest.approx((1.0, math.exp(-0.25)))
    assert ramp_weights(75, 3) == pytest.approx((1.0, math.exp(-0.9216)))
    assert ramp_weights(1, 1) == (1.0, 1.0)


class Rank:
    """A rank whose peers' rows are known beforehand."""

    def __init__(self, size: int, everyone: Tensor) -> None:
        self.size = size
        self.everyone = everyone

    def gather(self, values: Tensor, first: int, total: int) -> Tensor:
        assert total == len(self.everyone) and torch.equal(values, self.everyone[first : first + len(values)])
        return self.everyone


@pytest.mark.parametrize("scope", ["global", "local"])
def test_attention_scope_over_ranks(scope: str) -> None:
    """Global: attention is compared over the batch, so ranks change nothing. Local: within each rank's rows."""
    config = LossConfig(batch_scope=scope, rank_margin=0.9)  # type: ignore[arg-type]
    ramp, (output, labels, classes) = LossWeights(0.3, 0.8), random_case(13, 5, 4)
    attention = ((output.auxiliary_attention + output.target_attention) / 2).detach()
    whole = naive_loss(output, labels, classes, ramp, config)
    ranks, parts = [], []
    for rows in (slice(0, 8), slice(8, 13)):
        mine = Output(*(t[rows].detach() for t in output))
        place = BatchSlice(rows.start, 13)
        ranks.append(adadf_loss(mine, labels[rows], TargetInputs(classes), ramp, config, (Rank(2, attention), place)))
        parts.append(naive_loss(mine, labels[rows], classes, ramp, config))
    means = {name: sum(getattr(r, name).item() for r in ranks) / 2 for name in ("total", "cross_entropy")}
    assert means["cross_entropy"] == pytest.approx(whole["ce"], abs=1e-12)
    if scope == "global":
        assert [r.rank_regularization.item() for r in ranks] == pytest.approx([whole["rr"]] * 2, abs=1e-12)
        assert [w for r in ranks for w in r.attention_weights.tolist()] == pytest.approx(whole["weights"], abs=1e-12)
        assert means["total"] == pytest.approx(whole["total"], abs=1e-12)
        return
    assert [r.rank_regularization.item() for r in ranks] == pytest.approx([p["rr"] for p in parts], abs=1e-12)
    for rank, part in zip(ranks, parts, strict=True):
        assert rank.attention_weights.tolist() == pytest.approx(part["weights"], abs=1e-12)
    divergence = sum(sum(part["per_sample"]) for part in parts) / 13
    regularization = (parts[0]["rr"] + parts[1]["rr"]) / 2
    assert means["total"] == pytest.approx(0.3 * divergence + 0.8 * whole["ce"] + regularization, abs=1e-12)
    assert abs(means["total"] - whole["total"]) > 1e-3, "the case does not tell the scopes apart"
