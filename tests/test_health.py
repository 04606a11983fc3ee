"""What is wrong with a run: each rule on records made by hand, on both sides of what it looks at."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from adadf_dist import diagnostics
from adadf_dist.checkpoint.progress import TrainingProgress
from adadf_dist.config.load import flatten, override, to_dict
from adadf_dist.config.schema import Config
from adadf_dist.config.validate import validate
from adadf_dist.diagnostics.classes import describe_collapse
from adadf_dist.diagnostics.run import (
    FindingSpan,
    Record,
    assess,
    attention_stats,
    diagnose,
    finding_spans,
    new_findings,
)
from adadf_dist.distributed.world import World
from adadf_dist.findings import Finding, Severity
from adadf_dist.tracking.logger import RunLogger

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
    return {finding.name: finding for finding in diagnose(records, config, CLASSES, **more)}


def test_a_healthy_run_has_nothing() -> None:
    assert found(run_of(9)) == {}
    assert found([]) == {}


def test_collapse_to_one_class() -> None:
    # of 120 predictions one class has 114 (95 %), or 113
    alone = confusion([1, 38, 1], [0, 38, 2], [1, 38, 1])
    nearly = confusion([2, 37, 1], [1, 38, 1], [1, 38, 1])
    seen = found(run_of(6, alone))["collapse"]
    assert (
        seen.severity is Severity.ERROR and "95% of the samples are predicted as happy, on validation" in seen.message
    )
    assert "attention_lr_factor" in seen.hint
    assert "predicted as" not in found(run_of(6, nearly))["collapse"].message  # still at chance
    assert "collapse" not in found(run_of(4, alone)), "the first epochs are slow"


def test_collapse_to_chance() -> None:
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


def test_a_dead_class() -> None:
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


def test_a_collapse_is_not_told_twice() -> None:
    assert list(found(run_of(6, confusion([0, 40, 0], [0, 40, 0], [0, 40, 0])))) == ["collapse"]


@pytest.mark.parametrize(("deviation", "flat"), [(0.039, True), (0.041, False)])
def test_attention_all_alike(deviation: float, flat: bool) -> None:
    # 5 % of the range 0.2 to 1
    spread = {"mean": 0.97, "deviation": deviation}
    seen = found(run_of(6, attention=spread))
    assert ("attention saturated" in seen) is flat
    if flat:
        assert f"0.970 with a standard deviation of {deviation:.3f}" in seen["attention saturated"].message
    for supervision in ("label", "class", "one_hot"):
        assert "attention saturated" not in found(
            run_of(6, attention=spread), override(CONFIG, {"loss.supervision": supervision})
        )
    assert "attention saturated" not in found(run_of(3, attention=spread))


def test_records_of_older_runs_lack_some_figures() -> None:
    old = [{k: v for k, v in r.items() if k not in ("attention", "class_degrees", "waiting")} for r in run_of(9)]
    assert found(old) == {}
    never = found([{**r, "classes_at_threshold": 0} for r in old])["threshold never met"]
    assert "the constant T_c for 9 of 9 epochs" in never.message


def test_a_threshold_never_met() -> None:
    low = {"classes_at_threshold": 0, "class_degrees": [0.31, 0.58, 0.4]}
    seen = found(run_of(6, **low))["threshold never met"]
    assert seen.severity is Severity.WARNING
    assert "the constant T_c for 6 of 6 epochs" in seen.message and "0 of 18 cases" in seen.message
    assert "the highest class mean is now 0.58, of happy" in seen.message
    assert "class_distributions.threshold = 0.4," in seen.hint, "happy and sad reach it, half of three classes and more"
    assert found(run_of(5, **low)) == {}, "two epochs are no time"
    once = {"classes_at_threshold": 1, "class_degrees": [0.31, 0.72, 0.4]}
    assert found([*run_of(5, **low), record(6, **once)]) == {}, "1 of 9 cases after the epoch threshold"
    rising = [record(e, classes_at_threshold=0, class_degrees=[0.1, 0.1 * e, 0.1]) for e in range(1, 7)]
    assert found(rising) == {}, "0.6 and 0.1 more each epoch: it is on its way in a run of 75 epochs"
    assert "threshold never met" in found(rising, override(CONFIG, {"epochs": 6})), "there are no more epochs"
    slow = [record(e, classes_at_threshold=0, class_degrees=[0.1, 0.3 + 0.02 * e, 0.1]) for e in range(1, 7)]
    assert "threshold never met" in found(slow, override(CONFIG, {"epochs": 12})), "0.42, and 0.54 at the end"
    assert found(run_of(6, **low), override(CONFIG, {"loss.supervision": "label"})) == {}


def test_a_threshold_always_met() -> None:
    seen = found(run_of(6, classes_at_threshold=3))["threshold always met"]
    assert seen.severity is Severity.INFO and "all 3 class means" in seen.message
    assert found([*run_of(5, classes_at_threshold=3), record(6, classes_at_threshold=2)]) == {}
    assert "threshold always met" not in found(run_of(5, classes_at_threshold=3))
    late = [record(1), record(2), *(record(epoch, classes_at_threshold=3) for epoch in range(3, 9))]
    assert found(late) == {}, "it kept early class means out"


@pytest.mark.parametrize(
    ("share", "severity"), [(0.09, None), (0.11, Severity.INFO), (0.29, Severity.INFO), (0.31, Severity.WARNING)]
)
def test_waiting_for_the_loader(share: float, severity: Severity | None) -> None:
    seen = found([record(1), record(2, waiting=share)]).get("waiting for the loader")
    assert (seen and seen.severity) is severity
    if seen is not None:
        assert f"{share:.0%} of the epoch" in seen.message and "data.workers = 4 (now 2)" in seen.hint
    assert found([record(1, waiting=share)]) == {}, "workers start in the first epoch"


def test_an_auxiliary_branch_that_diverges() -> None:
    def losses(*values: float) -> list[dict[str, Any]]:
        return [record(epoch, cross_entropy=value) for epoch, value in enumerate(values, start=1)]

    seen = found(losses(1.5, 1.0, 1.02, 1.05, 1.1))["auxiliary branch diverging"]
    assert "rose 3 epochs in a row, to 1.100 from 1.000" in seen.message
    assert found(losses(1.5, 1.0, 1.02, 1.05, 1.09)) == {}, "not by a tenth"
    assert found(losses(1.5, 1.0, 1.2, 1.1, 1.3)) == {}, "up and down"
    assert found(losses(1.0, 1.05, 1.1)) == {}, "twice"
    baseline = override(CONFIG, {"loss.supervision": "one_hot"})
    assert "auxiliary branch diverging" not in found(losses(1.5, 1.0, 1.02, 1.05, 1.1), baseline)


def test_an_auxiliary_branch_far_behind() -> None:
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
def test_replaced_faces(count: int, severity: Severity | None) -> None:
    seen = found(run_of(2, replaced_faces=count)).get("replaced samples")
    assert (seen and seen.severity) is severity  # data.max_bad_faces is 100


def test_overfitting() -> None:
    # of 120 faces at 0.75, two standard errors of a difference are 2 sqrt(2 * 0.75 * 0.25 / 120) = 11.180 points
    def fallen_to(accuracy: float, **changed: Any) -> list[dict[str, Any]]:
        return run_of(3) + [record(epoch, accuracy=accuracy, **changed) for epoch in (4, 5, 6)]

    assert found(fallen_to(0.639)).keys() == set()
    seen = found(fallen_to(0.638))["overfitting"]
    assert seen.severity is Severity.INFO and "11.2 points below its best 3" in seen.message
    assert "optimizer.weight_decay = 0.0002" in found(fallen_to(0.6), decaying(1e-4))["overfitting"].hint
    assert "augment.policy = published" in found(fallen_to(0.6), plain())["overfitting"].hint
    assert found(fallen_to(0.6, kl_divergence=2.1)) == {}, "it does not learn at all"
    one_hot = override(CONFIG, {"loss.supervision": "one_hot"})
    assert "from 2.000 to 0.333" in found(fallen_to(0.6), one_hot)["overfitting"].message


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


ASSIGNMENT = re.compile(r"([a-z_]+\.[a-z_]+) = ([\w.-]*\w)")
"""`key = value` in an advice."""


def diverged() -> list[dict[str, Any]]:
    losses = [1.5, 1.0, 1.0, 1.02, 1.05, 1.1]
    return [record(epoch, cross_entropy=value) for epoch, value in enumerate(losses, start=1)]


UNWELL = {
    "collapse": run_of(6, confusion([0, 40, 0], [0, 40, 0], [0, 40, 0]), step=2400),
    "dead class": run_of(6, confusion([0, 20, 20], [0, 30, 10], [0, 10, 30])),
    "attention saturated": run_of(6, attention={"mean": 0.97, "deviation": 0.0}),
    "threshold never met": run_of(6, classes_at_threshold=0, class_degrees=[0.4, 0.44, 0.42]),
    "threshold always met": run_of(6, classes_at_threshold=3, class_degrees=[0.8, 0.9, 0.75]),
    "waiting for the loader": run_of(6, waiting=0.5),
    "auxiliary branch diverging": diverged(),
    "auxiliary branch behind": run_of(6),
    "overfitting": run_of(3) + [record(epoch, accuracy=0.5) for epoch in (4, 5, 6)],
}
"""Finding -> epochs that show it."""
CONFIGS: dict[str, dict[str, object]] = {
    "paper": {},
    "from scratch": {"optimizer.attention_lr_factor": 0.02, "optimizer.warmup_steps": 0.1},
    "pretrained": {"model.pretrained": "imagenet"},
    "label": {"loss.supervision": "label"},
    "class": {"loss.supervision": "class"},
    "one_hot": {"loss.supervision": "one_hot"},
    "stream": {"data.access": "stream", "data.loader": "torch"},
    "dali": {"data.loader": "dali", "data.sampler": "balanced"},
    "strongest augmentation": {"augment.magnitude": 10.0},
    "standard": {"augment.policy": "standard", "augment.magnitude": 29.0},
    "no operations": {"augment.operations": 0},
    "one attention": {"loss.lambda_min": 1.0},
    "no groups": {"loss.rank_ratio": 1.0},
    "untrained heads": {"optimizer.attention_lr_factor": 0.0},
    "widest margin": {"loss.rank_margin": 1.0},
    "late": {"loss.epoch_threshold": 3, "epochs": 6},
}


def replace_keys(config: Config, values: Mapping[str, object]) -> Config:
    """`override` without its parser, which is slow; values are checked against the same ranges."""
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        changed = {name: value}
        if section:
            changed = {section: dataclasses.replace(getattr(config, section), **changed)}
        config = dataclasses.replace(config, **changed)  # type: ignore[arg-type]
    validate(config)
    return config


@pytest.mark.parametrize("name", UNWELL)
@pytest.mark.parametrize("base", CONFIGS)
def test_no_advice_is_followed_already_or_cannot_be(name: str, base: str) -> None:
    """Advice is taken, time and again: it never names a value that is set, and every value it names is allowed."""
    config = replace_keys(CONFIG, CONFIGS[base])
    for _ in range(12):
        finding = found(UNWELL[name], config, auxiliary_accuracy=0.3).get(name)
        if finding is None:
            return
        assert finding.hint
        now = dict(flatten(to_dict(config)))
        changes = dict(ASSIGNMENT.findall(finding.hint))
        if not changes:
            break
        for key, value in changes.items():
            assert str(now[key]) != value, finding.hint
            assert not isinstance(now[key], float) or float(value) != now[key], finding.hint
        config = replace_keys(config, {key: yaml.safe_load(value) for key, value in changes.items()})
    assert "detach" not in finding.hint or not config.loss.detach
    assert "pretrained" not in finding.hint or not config.model.pretrained
    if name == "waiting for the loader" and config.data.access == "stream":
        assert "dali" not in finding.hint


def test_every_finding_is_among_the_unwell() -> None:
    """So that a new rule is walked by the test above."""
    for name, records in UNWELL.items():
        assert name in found(records, auxiliary_accuracy=0.3)
    source = Path(diagnostics.__file__).parent.glob("*.py")
    named = {name for path in source for name in re.findall(r'Finding\(\s*f?"([^"]+)"', path.read_text())}
    varying = {"threshold {'hardly ever' if any(late) else 'never'} met"}
    assert named - varying - UNWELL.keys() <= {"replaced samples"}, "its advice has no value"


def test_a_network_that_still_learns_is_no_collapse() -> None:
    """At chance by the rule (below 38.7 %), but up from 20 % three epochs ago, beyond the noise of 120 samples."""
    early = confusion([8, 16, 16], [16, 8, 16], [16, 16, 8])
    now = confusion([16, 12, 12], [13, 15, 12], [13, 12, 15])
    assert "collapse" in found(run_of(6, now))
    assert "collapse" not in found([*run_of(5, early), record(6, now)])


def test_a_class_may_come_late_while_accuracy_rises() -> None:
    """Fear is never predicted, and the mean accuracy of classes rose from a third to 0.58 in three epochs."""
    early, now = confusion([0, 40, 0], [0, 40, 0], [0, 40, 0]), confusion([0, 20, 20], [0, 35, 5], [0, 5, 35])
    records = [*run_of(3, early), *(record(epoch, now) for epoch in (4, 5, 6))]
    assert "dead class" not in found(records)
    assert "dead class" in found(records, override(CONFIG, {"epochs": 6})), "there are no more epochs"
    assert "dead class" in found([*records, *(record(epoch, now) for epoch in (7, 8, 9))])


@pytest.mark.parametrize(
    ("warmup", "step", "judged"), [(0, 199, False), (0, 200, True), (100, 299, False), (100, 300, True)]
)
def test_too_few_steps_are_no_collapse(warmup: int, step: int, judged: bool) -> None:
    records = run_of(6, confusion([0, 40, 0], [0, 40, 0], [0, 40, 0]))
    records[-1]["step"] = step
    config = override(CONFIG, {"optimizer.warmup_steps": warmup})
    assert ("collapse" in found(records, config)) is judged
    reasons = assess(records, config, CLASSES).not_judged
    assert (
        any(reason.startswith("collapse") and "steps after the warm-up" in reason for reason in reasons) is not judged
    )


def test_a_collapse_by_counts_of_predictions() -> None:
    """As a caller has them that keeps no confusion matrix."""
    labeled = np.array([40, 40, 40])
    assert "100% of the samples are predicted as sad" in describe_collapse(
        np.array([0, 0, 120]), labeled, 1 / 3, CLASSES
    )
    assert describe_collapse(np.array([40, 45, 35]), labeled, 0.7, CLASSES) == ""


def test_only_what_had_enough_data_is_judged() -> None:
    few = confusion([3, 3, 3], [4, 30, 6], [3, 7, 30])
    judged, not_judged = assess(run_of(6, few), CONFIG, CLASSES)
    assert "classes never predicted" in judged
    assert "classes with fewer than 10 validation samples: fear (9)" in not_judged
    judged, not_judged = assess(run_of(1), CONFIG, CLASSES)
    assert judged == ["samples that do not decode"]
    assert [text.split(" (")[0] for text in not_judged] == [
        "collapse",
        "classes never predicted",
        "attention",
        "class distribution threshold",
        "loader",
        "auxiliary branch's loss",
        "overfitting",
    ]
    baseline = override(CONFIG, {"loss.supervision": "one_hot"})
    subjects = " ".join([*assess(run_of(9), baseline).judged, *assess(run_of(9), baseline).not_judged])
    assert "attention" not in subjects and "threshold" not in subjects, "they do not apply"


def test_the_threshold_of_a_recorded_demo() -> None:
    """`make demo` at t = 0.7, E = 2: one of seven classes in one of nine epochs (class_degrees as recorded)."""
    degrees = [
        [0.17, 0.15, 0.15, 0.15, 0.13, 0.15, 0.16],
        [0.20, 0.17, 0.17, 0.20, 0.15, 0.17, 0.24],
        [0.25, 0.21, 0.22, 0.28, 0.21, 0.24, 0.40],
        [0.35, 0.25, 0.35, 0.29, 0.27, 0.29, 0.53],
        [0.40, 0.30, 0.41, 0.31, 0.28, 0.39, 0.61],
        [0.43, 0.47, 0.45, 0.48, 0.38, 0.52, 0.65],
        [0.47, 0.52, 0.50, 0.55, 0.47, 0.59, 0.67],
        [0.52, 0.57, 0.58, 0.60, 0.54, 0.62, 0.71],
        [0.56, 0.62, 0.60, 0.62, 0.58, 0.67, 0.69],
    ]
    good = np.full((7, 7), 3) + 40 * np.eye(7, dtype=int)
    records = [
        record(epoch, good.tolist(), class_degrees=row, classes_at_threshold=sum(degree >= 0.7 for degree in row))
        for epoch, row in enumerate(degrees, start=1)
    ]
    config = override(CONFIG, {"loss.epoch_threshold": 2, "epochs": 9})
    (finding,) = diagnose(records, config)
    assert finding.name == "threshold hardly ever met" and finding.severity is Severity.WARNING
    # the means of epoch 8, one of them above t, are the targets of epoch 9
    assert "the constant T_c for 8 of 9 epochs" in finding.message and "1 of 63 cases" in finding.message
    assert "class_distributions.threshold = 0.6," in finding.hint


def test_the_worst_comes_first() -> None:
    records = run_of(6, confusion([0, 40, 0], [0, 40, 0], [0, 40, 0]), waiting=0.2, replaced_faces=50)
    assert [f.severity for f in diagnose(records, CONFIG)] == [Severity.ERROR, Severity.WARNING, Severity.INFO]


def test_only_what_changed_is_news() -> None:
    records = [record(1), record(2, waiting=0.2), record(3, waiting=0.25), record(4, waiting=0.5), record(5)]
    output = [[(f.name, f.severity.word) for f in new_findings(records[:end], CONFIG)] for end in range(1, 6)]
    assert output == [[], [("waiting for the loader", "info")], [], [("waiting for the loader", "warning")], []]


def test_when_a_finding_held() -> None:
    shares = [0.0, 0.2, 0.25, 0.0, 0.2, 0.22]
    records = [record(epoch, waiting=share) for epoch, share in enumerate(shares, start=1)]
    held = [(e.first, e.last, e.finding.message[:3]) for e in finding_spans(records, CONFIG)]
    assert held == [(5, 6, "22%"), (2, 3, "25%")]
    assert isinstance(finding_spans(records, CONFIG)[0], FindingSpan)


def test_the_spread_of_attention() -> None:
    values = np.array([0.2, np.nan, 0.6, 1.0], dtype=np.float32)
    spread = attention_stats(values)
    assert spread is not None
    assert spread["mean"] == pytest.approx(0.6)
    assert spread["deviation"] == pytest.approx((0.32 / 3) ** 0.5)
    assert attention_stats(np.full(2, np.nan, dtype=np.float32)) is None


def test_the_log_says_it_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = RunLogger(override(CONFIG, {"out": str(tmp_path), "runtime.tensorboard": False}), World(torch.device("cpu")))
    progress = TrainingProgress()
    log.start(progress, {"classes": list(CLASSES)}, None)
    for number in range(1, 8):
        base = record(number, confusion([0, 20, 20], [0, 30, 10], [0, 10, 30]))
        output = {**base, "total": 1.0, "learning_rate": 1e-3, "images_per_s": 10.0}
        progress.finish_epoch(base["validation"]["accuracy"], output)
        log.log_epoch(progress, output)
    log.close()
    out = capsys.readouterr().out
    assert out.count("warning: dead class: never predicted on validation in 3 epochs: fear (40 samples)") == 1
    assert out.index("dead class") > out.index("    6 "), "after the sixth epoch's row"
