"""Evaluation report, formatted as text tables and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adadf_dist.console.tables import align_columns
from adadf_dist.evaluate.annotators import Distances
from adadf_dist.evaluate.origin import Origin, describe_origin
from adadf_dist.evaluate.subgroups import Subgroup
from adadf_dist.metrics.distances import FLOOR, SIMILARITIES
from adadf_dist.metrics.scores import BINS, Calibration, ClassScore, Estimate, Scores

SCHEMA_VERSION = 1


class EvalContext(NamedTuple):
    """Model, data and settings of an evaluation."""

    checkpoint: Path
    epoch: int
    dataset: str
    """Dataset folder or URL."""
    split: str
    faces: int
    left_out: int
    """Number of samples that the class mapping excludes."""
    mapping: Mapping[str, str]
    """Dataset class -> model class."""
    tta: str
    ten_crop: int
    """Side in pixels of the image from which ten crops are taken; 0 if ten-crop is not used."""
    loader: str
    precision: str
    batch_size: int
    ranks: int
    device: str
    other_data: str = ""
    """How the dataset differs from the run's, if the user allowed it; empty if it does not differ."""
    training_samples: int = 0
    """Number of evaluated samples that the run was trained on."""


class Report(NamedTuple):
    asked: EvalContext
    scores: Scores
    bayes_accuracy: float | None
    """Bayes-optimal accuracy; None if the true distributions are unknown."""
    groups: Mapping[str, Sequence[Subgroup]]
    """Metadata field -> accuracy for each value of the field."""
    distances: Distances | None
    """Distances of predictions, training targets and labels from the annotator votes; None without votes."""

    def to_dict(self) -> dict[str, object]:
        """Return the report as JSON-serializable values; undefined numbers become null."""
        values = to_jsonable(self)
        assert isinstance(values, dict)
        return {"schema_version": SCHEMA_VERSION, **values}

    def __str__(self) -> str:
        parts = [
            self.heading(),
            self.summary(),
            class_table(self.scores.classes),
            confusion_table(self.scores),
            calibration_table(self.scores.calibration),
            *(group_table(field, groups) for field, groups in self.groups.items()),
            "no annotator votes; distances skipped" if self.distances is None else distance_table(self.distances),
        ]
        return "\n\n".join(parts)

    def heading(self) -> str:
        asked = self.asked
        excluded = f" ({asked.left_out:,} excluded by the mapping)" if asked.left_out else ""
        tta = f", ten crops from {asked.ten_crop}" if asked.ten_crop else ", with mirroring" * (asked.tta == "flip")
        lines = [
            f"{asked.checkpoint}, epoch {asked.epoch}",
            f"{asked.dataset}, {asked.split}: {asked.faces:,} samples{excluded}; "
            f"{asked.loader}, {asked.precision}{tta}",
            *describe_origin(Origin(asked.other_data, asked.training_samples), asked.faces),
        ]
        return "\n".join(lines)

    def summary(self) -> str:
        scores = self.scores
        lines = [
            f"accuracy             {format_percent(scores.accuracy)} (Wilson)",
            f"mean class accuracy  {format_percent(scores.mean_class_accuracy)} (bootstrap over samples)",
            f"macro F1             {format_percent(scores.macro_f1)} (bootstrap over samples)",
        ]
        if self.bayes_accuracy is not None:
            lines.append(f"Bayes-optimal        {self.bayes_accuracy:7.2%}  maximum, given the true distributions")
        return "\n".join(lines)


def class_table(classes: Sequence[ClassScore]) -> str:
    rows = [
        [c.name, f"{c.faces:,}", f"{c.predicted:,}", *map(format_float, (c.precision, c.recall, c.f1))] for c in classes
    ]
    return table(["class", "samples", "predicted", "precision", "recall", "F1"], rows)


def confusion_table(scores: Scores) -> str:
    names = [score.name for score in scores.classes]
    rows = [[name, *map(str, row)] for name, row in zip(names, scores.confusion.tolist(), strict=True)]
    return "confusion matrix (rows: true, columns: predicted)\n" + table(["", *names], rows)


def calibration_table(calibration: Calibration) -> str:
    rows = [
        [f"{b.low:.2f} to {b.high:.2f}", f"{b.faces:,}", format_float(b.confidence), format_float(b.accuracy)]
        for b in calibration.bins
        if b.faces
    ]
    head = (
        f"calibration: ECE {calibration.ece:.4f} ({BINS} equal-width confidence bins), "
        f"Brier {calibration.brier:.4f} (0 to 2), NLL {calibration.nll:.4f} nats"
    )
    return head + "\n" + table(["confidence", "samples", "mean", "accuracy"], rows)


def group_table(field: str, groups: Sequence[Subgroup]) -> str:
    return table([field, "samples", "accuracy"], [[g.name, f"{g.faces:,}", format_percent(g.accuracy)] for g in groups])


def distance_table(distances: Distances) -> str:
    """Format the distances: two lines per measure, with the means and their intervals."""
    rows = []
    for measure in next(iter(distances.measures.values())):
        means = [of[measure] for of in distances.measures.values()]
        rows.append([measure.replace("_", "-"), *(f"{mean.value:.4f}" for mean in means)])
        rows.append(["", *("{:.3f} to {:.3f}".format(*mean.interval) for mean in means)])
    head = (
        f"distance from the votes of {distances.faces:,} samples: means with 95% bootstrap intervals; lower is better, "
        f"except for {' and '.join(SIMILARITIES)};\nkl and jensen-shannon in nats; kl clamps q to at least {FLOOR:g}, "
        "which dominates its value for one-hot"
    )
    return head + "\n" + table(["", *distances.measures], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(align_columns([head, *rows]))


def format_float(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def format_percent(measured: Estimate) -> str:
    low, high = measured.interval
    return f"{measured.value:7.2%}  95% interval {low:.2%} to {high:.2%}"


def to_jsonable(value: object) -> object:
    """Convert to JSON types: named tuples to objects, arrays to lists, NaN to null."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): to_jsonable(v) for key, v in value.items()}
    if hasattr(value, "_asdict"):
        return to_jsonable(value._asdict())
    return [to_jsonable(v) for v in value] if isinstance(value, (list, tuple)) else value
