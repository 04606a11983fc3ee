"""What is wrong with a run: each rule on records made by hand, on both sides of what it looks at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adadf_dist.config import Config
from adadf_dist.health import Episode, Finding, Record, Severity, attention_spread, episodes, examine, news
from adadf_dist.runtime.log import Log
from adadf_dist.runtime.progress import Progress
from adadf_dist.settings import override
from adadf_dist.world import World

CLASSES = ("fear", "happy", "sad")
CONFIG = Config()
"""Epoch threshold 3, t = 0.7, lambda_min 0.2."""


def confusion(*rows: Sequence[int]) -> list[list[int]]:
    return [list(row) for row in rows]


GOOD = confusion([30, 5, 5], [4, 30, 6], [3, 7, 30])


def record(epoch: int, matrix: list[list[int]] = GOOD, **changed: Any) -> dict[str, Any]:
    """A healthy epoch, but for what is changed."""
    counts = np.array(matrix)
    recalls = np.diag(counts) / counts.sum(axis=1)
    accuracy = float(np.trace(counts) / counts.sum())
    validation = {
        "samples": int(counts.sum()),
        "accuracy": changed.pop("accuracy", accuracy),
        "mean_class_accuracy": float(recalls.mean()),
        "class_accuracy": recalls.tolist(),
        "confusion": matrix,
    }
    healthy = {
        "kind": "epoch",
        "epoch": epoch,
        "kl_divergence": 1 / epoch,
        "cross_entropy": 2 / epoch,
        "waiting": 0.01,
        "replaced_faces": 0,
        "classes_at_threshold": 1,
        "class_degrees": [0.4, 0.75, 0.5],
        "attention": {"mean": 0.6, "deviation": 0.2},
        "ranks": {"loading_s": 0.0, "evaluation_s": 0.0, "median_s": 0.0, "epoch_s": 1.0},
        "validation": validation,
    }
    return {**healthy, **changed}


def run_of(epochs: int, matrix: list[list[int]] = GOOD, **changed: Any) -> list[dict[str, Any]]:
    return [record(epoch, matrix, **changed) for epoch in range(1, epochs + 1)]


def found(records: Sequence[Record], config: Config = CONFIG, **more: Any) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(records, config, CLASSES, **more)}


def test_a_healthy_run_has_nothing() -> None:
    assert found(run_of(9)) == {}
    assert found([]) == {}


def test_collapse_to_one_class() -> None:
    # of 120 predictions one class has 114 (95 %), or 113
    alone = confusion([1, 38, 1], [0, 38, 2], [1, 38, 1])
    nearly = confusion([2, 37, 1], [1, 38, 1], [1, 38, 1])
    seen = found(run_of(6, alone))["collapse"]
    assert seen.severity is Severity.ERROR and "95% of the validation faces are taken for happy" in seen.seen
    assert "attention_lr_factor" in seen.mend
    assert "taken for" not in found(run_of(6, nearly))["collapse"].seen  # still at chance
    assert "collapse" not in found(run_of(4, alone)), "the first epochs are slow"


def test_collapse_to_chance() -> None:
    # 0.08 of the way from a third to 1 is 0.3867: 47 of 120 are above, 46 below
    edge = confusion([16, 14, 10], [12, 16, 12], [10, 15, 15])
    below = confusion([16, 14, 10], [13, 15, 12], [10, 15, 15])
    assert "collapse" not in found(run_of(6, edge))
    assert "38.3% where chance is 33.3%" in found(run_of(6, below))["collapse"].seen


def test_two_classes_at_three_quarters_are_no_collapse() -> None:
    records = run_of(6, confusion([72, 28], [28, 72]))
    assert not [f for f in examine(records, CONFIG, ("happy", "sad")) if f.name == "collapse"]


def test_one_class_that_is_nearly_everything_is_no_collapse() -> None:
    skewed = confusion([2, 0, 0], [1, 195, 0], [0, 0, 2])
    assert found(run_of(6, skewed)) == {}


def test_a_dead_class() -> None:
    dead = confusion([0, 5, 5], [0, 30, 10], [0, 10, 30])
    few = confusion([0, 5, 4], [0, 30, 10], [0, 10, 30])
    once = confusion([0, 5, 5], [1, 31, 8], [0, 10, 30])
    seen = found(run_of(6, dead))["dead class"]
    assert (seen.severity, seen.subject) == (Severity.WARNING, "fear")
    assert "fear (10 faces)" in seen.seen and "data.sampler = sqrt" in seen.mend
    assert found(run_of(6, few)) == {}, "nine faces may go unpredicted"
    assert found([*run_of(5, dead), record(6, once)]) == {}
    assert found([*run_of(3), record(4, once), record(5, dead), record(6, dead)]) == {}, "not three epochs yet"
    assert "dead class" not in found(run_of(5, dead)), "two epochs after the threshold"
    sampled = override(CONFIG, {"data.sampler": "oversample"})
    assert "data.sampler" not in found(run_of(6, dead), sampled)["dead class"].mend


def test_a_collapse_is_not_told_twice() -> None:
    assert list(found(run_of(6, confusion([0, 40, 0], [0, 40, 0], [0, 40, 0])))) == ["collapse"]


@pytest.mark.parametrize(("deviation", "flat"), [(0.039, True), (0.041, False)])
def test_attention_all_alike(deviation: float, flat: bool) -> None:
    # 5 % of the range 0.2 to 1
    spread = {"mean": 0.97, "deviation": deviation}
    seen = found(run_of(6, attention=spread))
    assert ("attention saturated" in seen) is flat
    if flat:
        assert f"0.970 with a standard deviation of {deviation:.3f}" in seen["attention saturated"].seen
    for supervision in ("label", "class", "one_hot"):
        assert "attention saturated" not in found(
            run_of(6, attention=spread), override(CONFIG, {"loss.supervision": supervision})
        )
    assert "attention saturated" not in found(run_of(3, attention=spread))


def test_records_of_older_runs_lack_some_figures() -> None:
    old = [{k: v for k, v in r.items() if k not in ("attention", "class_degrees", "waiting")} for r in run_of(9)]
    assert found(old) == {}
    never = found([{**r, "classes_at_threshold": 0} for r in old])["threshold never met"]
    assert "no class mean reached 0.7 in 6 epochs" in never.seen


def test_a_threshold_never_met() -> None:
    low = {"classes_at_threshold": 0, "class_degrees": [0.31, 0.58, 0.4]}
    seen = found(run_of(6, **low))["threshold never met"]
    assert seen.severity is Severity.WARNING
    assert "happy, is at 0.58" in seen.seen and "class_distributions.threshold = 0.5" in seen.mend
    assert found(run_of(5, **low)) == {}, "two epochs are no time"
    assert found([*run_of(4, **low), record(5), record(6, **low)]) == {}, "it was met once"
    rising = [record(e, classes_at_threshold=0, class_degrees=[0.1, 0.1 * e, 0.1]) for e in range(1, 7)]
    assert found(rising) == {}, "it is on its way"
    assert found(run_of(6, **low), override(CONFIG, {"loss.supervision": "label"})) == {}


def test_a_threshold_always_met() -> None:
    seen = found(run_of(6, classes_at_threshold=3))["threshold always met"]
    assert seen.severity is Severity.NOTE and "all 3 class means" in seen.seen
    assert found([*run_of(5, classes_at_threshold=3), record(6, classes_at_threshold=2)]) == {}
    assert "threshold always met" not in found(run_of(5, classes_at_threshold=3))


@pytest.mark.parametrize(("share", "severity"), [(0.09, None), (0.11, 0), (0.29, 0), (0.31, 1)])
def test_waiting_for_the_loader(share: float, severity: int | None) -> None:
    seen = found([record(1), record(2, waiting=share)]).get("waiting for faces")
    assert (seen and int(seen.severity)) == severity
    if seen is not None:
        assert f"{share:.0%} of the epoch" in seen.seen and "data.workers = 4 (now 2)" in seen.mend
    assert found([record(1, waiting=share)]) == {}, "workers start in the first epoch"


def test_an_auxiliary_branch_that_diverges() -> None:
    def losses(*values: float) -> list[dict[str, Any]]:
        return [record(epoch, cross_entropy=value) for epoch, value in enumerate(values, start=1)]

    seen = found(losses(1.5, 1.0, 1.02, 1.05, 1.1))["auxiliary branch diverging"]
    assert "rose 3 epochs in a row, to 1.100 from 1.000" in seen.seen
    assert found(losses(1.5, 1.0, 1.02, 1.05, 1.09)) == {}, "not by a tenth"
    assert found(losses(1.5, 1.0, 1.2, 1.1, 1.3)) == {}, "up and down"
    assert found(losses(1.0, 1.05, 1.1)) == {}, "twice"
    baseline = override(CONFIG, {"loss.supervision": "one_hot"})
    assert "auxiliary branch diverging" not in found(losses(1.5, 1.0, 1.02, 1.05, 1.1), baseline)


def test_an_auxiliary_branch_far_behind() -> None:
    # the target branch is right for 90 of 120
    assert found(run_of(2), auxiliary_accuracy=0.66) == {}
    seen = found(run_of(2), auxiliary_accuracy=0.64)["auxiliary branch behind"]
    assert "64.0%" in seen.seen and "75.0%" in seen.seen


@pytest.mark.parametrize(("count", "severity"), [(0, None), (1, 0), (9, 0), (10, 1)])
def test_replaced_faces(count: int, severity: int | None) -> None:
    seen = found(run_of(2, replaced_faces=count)).get("replaced faces")
    assert (seen and int(seen.severity)) == severity  # data.max_bad_faces is 100


def test_overfitting() -> None:
    # of 120 faces at 0.75, two standard errors of a difference are 2 sqrt(2 * 0.75 * 0.25 / 120) = 11.180 points
    def fallen_to(accuracy: float, **changed: Any) -> list[dict[str, Any]]:
        return run_of(3) + [record(epoch, accuracy=accuracy, **changed) for epoch in (4, 5, 6)]

    assert found(fallen_to(0.639)).keys() == set()
    seen = found(fallen_to(0.638))["overfitting"]
    assert seen.severity is Severity.NOTE and "11.2 points below its best 3" in seen.seen
    assert "optimizer.weight_decay = 0.0002" in found(fallen_to(0.6), decaying(1e-4))["overfitting"].mend
    assert "augment.policy = published" in found(fallen_to(0.6), plain())["overfitting"].mend
    assert found(fallen_to(0.6, kl_divergence=2.1)) == {}, "it does not learn at all"
    one_hot = override(CONFIG, {"loss.supervision": "one_hot"})
    assert "from 2.000 to 0.333" in found(fallen_to(0.6), one_hot)["overfitting"].seen


def decaying(rate: float) -> Config:
    return override(CONFIG, {"optimizer.weight_decay": rate})


def plain() -> Config:
    return override(CONFIG, {"augment.policy": "none"})


def test_luck_is_no_overfitting() -> None:
    """As accurate in every epoch, judged on 700 faces that are drawn anew: the best of 40 epochs is so by luck."""
    random, alarms = np.random.default_rng(0), 0
    for _ in range(100):
        right = random.binomial(700, 0.85, size=40) / 700
        records = [record(epoch, accuracy=share) for epoch, share in enumerate(right.tolist(), start=1)]
        for each in records:
            each["validation"]["samples"] = 700
        alarms += "overfitting" in found(records)
    assert alarms <= 3


def test_the_worst_comes_first() -> None:
    records = run_of(6, confusion([0, 40, 0], [0, 40, 0], [0, 40, 0]), waiting=0.2, replaced_faces=50)
    assert [f.severity for f in examine(records, CONFIG)] == [2, 1, 0]


def test_only_what_changed_is_news() -> None:
    records = [record(1), record(2, waiting=0.2), record(3, waiting=0.25), record(4, waiting=0.5), record(5)]
    told = [[(f.name, f.severity.word) for f in news(records[:end], CONFIG)] for end in range(1, 6)]
    assert told == [[], [("waiting for faces", "note")], [], [("waiting for faces", "warning")], []]


def test_when_a_finding_held() -> None:
    shares = [0.0, 0.2, 0.25, 0.0, 0.2, 0.22]
    records = [record(epoch, waiting=share) for epoch, share in enumerate(shares, start=1)]
    held = [(e.first, e.last, e.finding.seen[:3]) for e in episodes(records, CONFIG)]
    assert held == [(5, 6, "22%"), (2, 3, "25%")]
    assert isinstance(episodes(records, CONFIG)[0], Episode)


def test_the_spread_of_attention() -> None:
    values = np.array([0.2, np.nan, 0.6, 1.0], dtype=np.float32)
    spread = attention_spread(values)
    assert spread is not None
    assert spread["mean"] == pytest.approx(0.6)
    assert spread["deviation"] == pytest.approx((0.32 / 3) ** 0.5)
    assert attention_spread(np.full(2, np.nan, dtype=np.float32)) is None


def test_the_log_says_it_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = Log(override(CONFIG, {"out": str(tmp_path), "runtime.tensorboard": False}), World(torch.device("cpu")))
    progress = Progress()
    log.start(progress, {"classes": list(CLASSES)}, None)
    for number in range(1, 8):
        base = record(number, confusion([0, 20, 20], [0, 30, 10], [0, 10, 30]))
        told = {**base, "total": 1.0, "learning_rate": 1e-3, "images_per_s": 10.0}
        progress.finish_epoch(base["validation"]["accuracy"], told)
        log.epoch(progress, told)
    log.close()
    out = capsys.readouterr().out
    assert out.count("warning: dead class: never predicted on validation in 3 epochs: fear (40 faces)") == 1
    assert out.index("dead class") > out.index("    6 "), "after the sixth epoch's row"
