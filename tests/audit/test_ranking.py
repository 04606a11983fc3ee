"""The ranking of training samples by suspicion, and the table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adadf_dist.audit.ranking import score_labels
from adadf_dist.audit.run_data import AuditInputs, load_audit_inputs
from adadf_dist.data.dataset import open_dataset
from adadf_dist.tracking.artifacts import load_samples
from tests.helpers.audits import read_table

CPU = torch.device("cpu")


def test_suspicion_is_the_mean_probability_of_other_classes(inputs: AuditInputs) -> None:
    target, auxiliary = np.array([[0.7, 0.2, 0.1], [0.1, 0.5, 0.4]]), np.array([[0.5, 0.5, 1e-9], [0.2, 0.2, 0.6]])
    answers = inputs.answers._replace(target_logits=np.log(target), auxiliary_logits=np.log(auxiliary))
    split = replace(inputs.split.subset(np.arange(2), "train"), labels=np.array([0, 1]))
    findings = score_labels(inputs._replace(split=split, answers=answers))
    assert findings.label_error_score.tolist() == pytest.approx([0.4, 0.65])
    assert findings.suggested_label.tolist() == [0, 2]
    assert findings.ranked.tolist() == [1, 0]


def test_audit_reads_the_split_used_for_training(run: Path, dataset: Path, inputs: AuditInputs) -> None:
    samples = load_samples(run)
    assert [str(key) for key in inputs.split.keys] == samples.keys.tolist()
    assert inputs.labels.tolist() == samples.labels.tolist()
    whole = open_dataset(dataset).split("train")
    assert len(whole) == 280 > len(inputs.labels)  # validation is held out
    images = {str(key): bytes(whole.read(place)) for place, key in enumerate(whole.keys)}
    assert bytes(inputs.split.read(7)) == images[str(inputs.split.keys[7])]


def test_table_lists_every_sample_once_most_suspicious_first(inputs: AuditInputs, audit_folder: Path) -> None:
    rows = read_table(audit_folder)
    assert sorted(row["key"] for row in rows) == sorted(str(key) for key in inputs.split.keys)
    scores = [float(row["label_error_score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    places = {str(key): place for place, key in enumerate(inputs.split.keys)}
    for row in rows[:5]:
        sample = places[row["key"]]
        target = [float(row[f"target_{name}"]) for name in inputs.classes]
        auxiliary = [float(row[f"auxiliary_{name}"]) for name in inputs.classes]
        assert sum(target) == pytest.approx(1, abs=1e-4)
        both = [(a + b) / 2 for a, b in zip(target, auxiliary, strict=True)]
        assert row["suggested_label"] == inputs.classes[both.index(max(both))]
        assert row["label"] == inputs.classes[inputs.faces.labels[sample]]
        assert row["true_label"] == inputs.classes[inputs.faces.true_labels[sample]]
        assert float(row["label_error_score"]) == pytest.approx(1 - both[inputs.classes.index(row["label"])], abs=1e-4)


def test_bf16_predictions_differ_from_fp32(run: Path) -> None:
    logits = []
    for precision in ("fp32", "bf16"):
        with load_audit_inputs(run, "selected", {}, CPU, precision=precision) as opened:  # type: ignore[arg-type]
            logits.append(opened.answers.target_logits)
    assert (logits[0] != logits[1]).any()
    assert abs(logits[0] - logits[1]).max() < 0.5
