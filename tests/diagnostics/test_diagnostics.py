"""Each diagnostic rule on handmade records, on both sides of its threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from adadf_dist.config.load import override
from adadf_dist.config.schema import Config
from adadf_dist.diagnostics.run import (
    diagnose,
)
from adadf_dist.findings import Severity
from tests.helpers.epoch_records import CONFIG, GOOD, confusion, found, record, run_of


def test_healthy_run_has_no_findings() -> None:
    assert found(run_of(9)) == {}
    assert found([]) == {}


def test_collapse_to_one_class_is_found() -> None:
    # of 120 predictions one class has 114 (95 %), or 113
    alone = confusion([1, 38, 1], [0, 38, 2], [1, 38, 1])
    nearly = confusion([2, 37, 1], [1, 38, 1], [1, 38, 1])
    seen = found(run_of(6, alone))["collapse"]
    assert (
        seen.severity is Severity.ERROR and "95% of the samples are predicted as happy, on validation" in seen.message
    )
    assert "attention_lr_mult" in seen.hint
    assert "predicted as" not in found(run_of(6, nearly))["collapse"].message  # still at chance
    assert "collapse" not in found(run_of(4, alone)), "the first epochs are slow"


def test_collapse_to_chance_is_found() -> None:
    # 0.08 of the way from a third to 1 is 0.3867: 47 of 120 are above, 46 below
    edge = confusion([16, 14, 10], [12, 16, 12], [10, 15, 15])
    below = confusion([16, 14, 10], [13, 15, 12], [10, 15, 15])
    assert "collapse" not in found(run_of(6, edge))
    assert "38.3% where chance is 33.3%" in found(run_of(6, below))["collapse"].message


def test_two_classes_at_three_quarters_are_no_collapse() -> None:
    records = run_of(6, confusion([72, 28], [28, 72]))
    assert not [f for f in diagnose(records, CONFIG, ("happy", "sad")) if f.name == "collapse"]


def test_one_class_that_is_nearly_everything_is_no_collapse() -> None:
    skewed = confusion([2, 0, 0], [1, 195, 0], [0, 0, 2])
    assert found(run_of(6, skewed)) == {}


def test_unpredicted_class_is_found() -> None:
    dead = confusion([0, 5, 5], [0, 30, 10], [0, 10, 30])
    few = confusion([0, 5, 4], [0, 30, 10], [0, 10, 30])
    once = confusion([0, 5, 5], [1, 31, 8], [0, 10, 30])
    seen = found(run_of(6, dead))["dead class"]
    assert (seen.severity, seen.location) == (Severity.WARNING, "fear")
    assert "fear (10 samples)" in seen.message and "data.sampler = sqrt" in seen.hint
    assert found(run_of(6, few)) == {}, "nine faces may go unpredicted"
    assert found([*run_of(5, dead), record(6, once)]) == {}
    assert found([*run_of(3), record(4, once), record(5, dead), record(6, dead)]) == {}, "not three epochs yet"
    assert "dead class" not in found(run_of(5, dead)), "two epochs after the threshold"
    sampled = override(CONFIG, {"data.sampler": "oversample"})
    assert "data.sampler" not in found(run_of(6, dead), sampled)["dead class"].hint


def test_collapse_hides_the_findings_that_it_implies() -> None:
    assert list(found(run_of(6, confusion([0, 40, 0], [0, 40, 0], [0, 40, 0])))) == ["collapse"]


@pytest.mark.parametrize(("deviation", "flat"), [(0.039, True), (0.041, False)])
def test_uniform_attention_is_found(deviation: float, flat: bool) -> None:
    # 5 % of the range 0.2 to 1
    spread = {"mean": 0.97, "std": deviation}
    seen = found(run_of(6, attention=spread))
    assert ("attention saturated" in seen) is flat
    if flat:
        assert f"0.970 with a standard deviation of {deviation:.3f}" in seen["attention saturated"].message
    for supervision in ("label", "class", "one_hot"):
        assert "attention saturated" not in found(
            run_of(6, attention=spread), override(CONFIG, {"loss.supervision": supervision})
        )
    assert "attention saturated" not in found(run_of(3, attention=spread))


def test_records_of_older_runs_are_accepted() -> None:
    old = [
        {k: v for k, v in r.items() if k not in ("attention", "class_mean_target_prob", "data_wait_fraction")}
        for r in run_of(9)
    ]
    assert found(old) == {}
    never = found([{**r, "classes_at_threshold": 0} for r in old])["threshold never met"]
    assert "the constant T_c for 9 of 9 epochs" in never.message


def test_threshold_never_reached_is_found() -> None:
    low = {"classes_at_threshold": 0, "class_mean_target_prob": [0.31, 0.58, 0.4]}
    seen = found(run_of(6, **low))["threshold never met"]
    assert seen.severity is Severity.WARNING
    assert "the constant T_c for 6 of 6 epochs" in seen.message and "0 of 18 cases" in seen.message
    assert "the highest class mean is now 0.58 (happy)" in seen.message
    assert "class_distributions.threshold = 0.4," in seen.hint, "happy and sad reach it, half of three classes and more"
    assert found(run_of(5, **low)) == {}, "two epochs are no time"
    once = {"classes_at_threshold": 1, "class_mean_target_prob": [0.31, 0.72, 0.4]}
    assert found([*run_of(5, **low), record(6, **once)]) == {}, "1 of 9 cases after the epoch threshold"
    rising = [record(e, classes_at_threshold=0, class_mean_target_prob=[0.1, 0.1 * e, 0.1]) for e in range(1, 7)]
    assert found(rising) == {}, "0.6 and 0.1 more each epoch: it is on its way in a run of 75 epochs"
    assert "threshold never met" in found(rising, override(CONFIG, {"epochs": 6})), "there are no more epochs"
    slow = [record(e, classes_at_threshold=0, class_mean_target_prob=[0.1, 0.3 + 0.02 * e, 0.1]) for e in range(1, 7)]
    assert "threshold never met" in found(slow, override(CONFIG, {"epochs": 12})), "0.42, and 0.54 at the end"
    assert found(run_of(6, **low), override(CONFIG, {"loss.supervision": "label"})) == {}


def test_threshold_always_reached_is_found() -> None:
    seen = found(run_of(6, classes_at_threshold=3))["threshold always met"]
    assert seen.severity is Severity.INFO and "all 3 class means" in seen.message
    assert found([*run_of(5, classes_at_threshold=3), record(6, classes_at_threshold=2)]) == {}
    assert "threshold always met" not in found(run_of(5, classes_at_threshold=3))
    late = [record(1), record(2), *(record(epoch, classes_at_threshold=3) for epoch in range(3, 9))]
    assert found(late) == {}, "it kept early class means out"


@pytest.mark.parametrize(
    ("share", "severity"), [(0.09, None), (0.11, Severity.INFO), (0.29, Severity.INFO), (0.31, Severity.WARNING)]
)
def test_slow_loader_is_found(share: float, severity: Severity | None) -> None:
    seen = found([record(1), record(2, data_wait_fraction=share)]).get("waiting for the loader")
    assert (seen and seen.severity) is severity
    if seen is not None:
        assert f"{share:.0%} of the epoch" in seen.message and "data.num_workers = 4 (now 2)" in seen.hint
    assert found([record(1, data_wait_fraction=share)]) == {}, "workers start in the first epoch"


def test_diverging_auxiliary_branch_is_found() -> None:
    def losses(*values: float) -> list[dict[str, Any]]:
        return [record(epoch, cross_entropy=value) for epoch, value in enumerate(values, start=1)]

    seen = found(losses(1.5, 1.0, 1.02, 1.05, 1.1))["auxiliary branch diverging"]
    assert "rose 3 epochs in a row, from a minimum of 1.000 to 1.100" in seen.message
    assert found(losses(1.5, 1.0, 1.02, 1.05, 1.09)) == {}, "not by a tenth"
    assert found(losses(1.5, 1.0, 1.2, 1.1, 1.3)) == {}, "up and down"
    assert found(losses(1.0, 1.05, 1.1)) == {}, "twice"
    baseline = override(CONFIG, {"loss.supervision": "one_hot"})
    assert "auxiliary branch diverging" not in found(losses(1.5, 1.0, 1.02, 1.05, 1.1), baseline)


def test_lagging_auxiliary_branch_is_found() -> None:
    # the target branch is right for 90 of 120, or for 900 of 1200
    many = [[10 * count for count in row] for row in GOOD]
    assert found(run_of(2, many), auxiliary_accuracy=0.66) == {}
    seen = found(run_of(2, many), auxiliary_accuracy=0.64)["auxiliary branch behind"]
    assert "64.0% of 1,200 validation samples" in seen.message and "75.0%" in seen.message
    # of 120, two standard errors of the difference are 2 sqrt((0.75 * 0.25 + 0.64 * 0.36) / 120) = 11.8 points
    assert found(run_of(2), auxiliary_accuracy=0.64) == {}, "within noise"
    assert "auxiliary branch behind" in found(run_of(2), auxiliary_accuracy=0.62)


@pytest.mark.parametrize(
    ("count", "severity"), [(0, None), (1, Severity.INFO), (9, Severity.INFO), (10, Severity.WARNING)]
)
def test_replaced_samples_are_found(count: int, severity: Severity | None) -> None:
    seen = found(run_of(2, num_replaced_samples=count)).get("replaced samples")
    assert (seen and seen.severity) is severity  # data.max_bad_samples is 100


def test_overfitting_is_found() -> None:
    # of 120 samples at 0.75, two standard errors of a difference are 2 sqrt(2 * 0.75 * 0.25 / 120) = 11.180 points
    def fallen_to(accuracy: float, **changed: Any) -> list[dict[str, Any]]:
        return run_of(3) + [record(epoch, accuracy=accuracy, **changed) for epoch in (4, 5, 6)]

    assert found(fallen_to(0.639)).keys() == set()
    seen = found(fallen_to(0.638))["overfitting"]
    assert seen.severity is Severity.INFO and "11.2 points below its best 3" in seen.message
    assert "optimizer.weight_decay = 0.0002" in found(fallen_to(0.6), decaying(1e-4))["overfitting"].hint
    assert "augment.policy = paper" in found(fallen_to(0.6), plain())["overfitting"].hint
    assert found(fallen_to(0.6, kl_divergence=2.1)) == {}, "it does not learn at all"
    one_hot = override(CONFIG, {"loss.supervision": "one_hot"})
    assert "from 2.000 to 0.333" in found(fallen_to(0.6), one_hot)["overfitting"].message


def decaying(rate: float) -> Config:
    return override(CONFIG, {"optimizer.weight_decay": rate})


def plain() -> Config:
    return override(CONFIG, {"augment.policy": "none"})


def test_random_best_epoch_is_not_overfitting() -> None:
    """Equal accuracy in every epoch, estimated on 700 fresh samples: the best of 40 epochs is best by chance."""
    random, alarms = np.random.default_rng(0), 0
    for _ in range(100):
        right = random.binomial(700, 0.85, size=40) / 700
        records = [record(epoch, accuracy=share) for epoch, share in enumerate(right.tolist(), start=1)]
        for each in records:
            each["validation"]["samples"] = 700
        alarms += "overfitting" in found(records)
    assert alarms <= 3
