"""Handmade epoch records of a healthy run, and the findings of changed ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from adadf_dist.config.schema import Config
from adadf_dist.diagnostics.finding import Record
from adadf_dist.diagnostics.run import diagnose
from adadf_dist.findings import Finding

CLASSES = ("fear", "happy", "sad")
CONFIG = Config()
"""Epoch threshold 3, t = 0.7, lambda_min 0.2."""


def confusion(*rows: Sequence[int]) -> list[list[int]]:
    return [list(row) for row in rows]


GOOD = confusion([30, 5, 5], [4, 30, 6], [3, 7, 30])


def record(epoch: int, matrix: list[list[int]] = GOOD, **changed: Any) -> dict[str, Any]:
    """The record of a healthy epoch, with changes."""
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
        "data_wait_fraction": 0.01,
        "num_replaced_samples": 0,
        "classes_at_threshold": 1,
        "class_mean_target_prob": [0.4, 0.75, 0.5],
        "attention": {"mean": 0.6, "std": 0.2},
        "ranks": {"loading_s": 0.0, "evaluation_s": 0.0, "median_s": 0.0, "epoch_s": 1.0},
        "validation": validation,
    }
    return {**healthy, **changed}


def run_of(epochs: int, matrix: list[list[int]] = GOOD, **changed: Any) -> list[dict[str, Any]]:
    return [record(epoch, matrix, **changed) for epoch in range(1, epochs + 1)]


def found(records: Sequence[Record], config: Config = CONFIG, **more: Any) -> dict[str, Finding]:
    return {finding.name: finding for finding in diagnose(records, config, CLASSES, **more)}
