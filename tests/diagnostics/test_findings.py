"""Findings of a run: too little data, order, epochs, and what the log prints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from adadf_dist.checkpoint.progress import TrainingProgress
from adadf_dist.config.load import override
from adadf_dist.diagnostics.classes import describe_collapse
from adadf_dist.diagnostics.run import (
    FindingSpan,
    assess,
    attention_stats,
    diagnose,
    finding_spans,
    new_findings,
)
from adadf_dist.distributed.world import World
from adadf_dist.findings import Severity
from adadf_dist.tracking.logger import RunLogger
from tests.helpers.epoch_records import CLASSES, CONFIG, confusion, found, record, run_of


def test_network_that_still_learns_is_no_collapse() -> None:
    """At chance by the rule (below 38.7 %), but up from 20 % three epochs ago, beyond the noise of 120 samples."""
    early = confusion([8, 16, 16], [16, 8, 16], [16, 16, 8])
    now = confusion([16, 12, 12], [13, 15, 12], [13, 12, 15])
    assert "collapse" in found(run_of(6, now))
    assert "collapse" not in found([*run_of(5, early), record(6, now)])


def test_late_class_is_no_finding_while_accuracy_rises() -> None:
    """Fear is never predicted, and mean class accuracy rose from a third to 0.58 in three epochs."""
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
    _, reasons = assess(records, config, CLASSES)
    assert (
        any(reason.startswith("collapse") and "steps after the warm-up" in reason for reason in reasons) is not judged
    )


def test_collapse_is_found_from_prediction_counts() -> None:
    """For a caller that keeps no confusion matrix."""
    labeled = np.array([40, 40, 40])
    assert "100% of the samples are predicted as sad" in describe_collapse(
        np.array([0, 0, 120]), labeled, 1 / 3, CLASSES
    )
    assert describe_collapse(np.array([40, 45, 35]), labeled, 0.7, CLASSES) == ""


def test_only_rules_with_enough_data_are_judged() -> None:
    few = confusion([3, 3, 3], [4, 30, 6], [3, 7, 30])
    checked, not_checked = assess(run_of(6, few), CONFIG, CLASSES)
    assert "classes never predicted" in checked
    assert "classes with fewer than 10 validation samples: fear (9)" in not_checked
    checked, not_checked = assess(run_of(1), CONFIG, CLASSES)
    assert checked == ["samples that do not decode"]
    assert [text.split(" (")[0] for text in not_checked] == [
        "collapse",
        "classes never predicted",
        "attention",
        "class distribution threshold",
        "loader",
        "auxiliary branch's loss",
        "overfitting",
    ]
    baseline = override(CONFIG, {"loss.supervision": "one_hot"})
    checked, not_checked = assess(run_of(9), baseline, CLASSES)
    subjects = " ".join([*checked, *not_checked])
    assert "attention" not in subjects and "threshold" not in subjects, "they do not apply"


def test_threshold_of_a_recorded_demo() -> None:
    """`make demo` at t = 0.7, E = 2: one of seven classes in one of nine epochs (class means as recorded)."""
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
        record(
            epoch, good.tolist(), class_mean_target_prob=row, classes_at_threshold=sum(degree >= 0.7 for degree in row)
        )
        for epoch, row in enumerate(degrees, start=1)
    ]
    config = override(CONFIG, {"loss.epoch_threshold": 2, "epochs": 9})
    (finding,) = diagnose(records, config, [f"class {number}" for number in range(7)])
    assert finding.name == "threshold hardly ever met" and finding.severity is Severity.WARNING
    # the means of epoch 8, one of them above t, are the targets of epoch 9
    assert "the constant T_c for 8 of 9 epochs" in finding.message and "1 of 63 cases" in finding.message
    assert "class_distributions.threshold = 0.6," in finding.hint


def test_worst_finding_comes_first() -> None:
    records = run_of(6, confusion([0, 40, 0], [0, 40, 0], [0, 40, 0]), data_wait_fraction=0.2, num_replaced_samples=50)
    assert [f.severity for f in diagnose(records, CONFIG, CLASSES)] == [Severity.ERROR, Severity.WARNING, Severity.INFO]


def test_only_changed_findings_are_new() -> None:
    records = [
        record(1),
        record(2, data_wait_fraction=0.2),
        record(3, data_wait_fraction=0.25),
        record(4, data_wait_fraction=0.5),
        record(5),
    ]
    output = [[(f.name, f.severity.word) for f in new_findings(records[:end], CONFIG, CLASSES)] for end in range(1, 6)]
    assert output == [[], [("waiting for the loader", "info")], [], [("waiting for the loader", "warning")], []]


def test_epochs_of_a_finding_are_listed() -> None:
    shares = [0.0, 0.2, 0.25, 0.0, 0.2, 0.22]
    records = [record(epoch, data_wait_fraction=share) for epoch, share in enumerate(shares, start=1)]
    held = [(e.first, e.last, e.finding.message[:3]) for e in finding_spans(records, CONFIG, CLASSES)]
    assert held == [(5, 6, "22%"), (2, 3, "25%")]
    assert isinstance(finding_spans(records, CONFIG, CLASSES)[0], FindingSpan)


def test_attention_spread_by_hand() -> None:
    values = np.array([0.2, np.nan, 0.6, 1.0], dtype=np.float32)
    spread = attention_stats(values)
    assert spread is not None
    assert spread["mean"] == pytest.approx(0.6)
    assert spread["std"] == pytest.approx((0.32 / 3) ** 0.5)
    assert attention_stats(np.full(2, np.nan, dtype=np.float32)) is None


def test_log_prints_a_finding_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
