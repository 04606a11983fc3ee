"""What an evaluation found: one value, told as tables for people and as JSON for programs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adadf_dist.evaluate.annotators import Distances
from adadf_dist.evaluate.origin import Origin, describe_origin
from adadf_dist.evaluate.subgroups import Subgroup
from adadf_dist.metrics.distances import FLOOR, SIMILARITIES
from adadf_dist.metrics.scores import BINS, Calibration, ClassScore, Estimate, Scores

SCHEMA_VERSION = 1


class EvalContext(NamedTuple):
    """What was asked of whom, and how."""

    checkpoint: Path
    epoch: int
    dataset: str
    """Folder or URL."""
    split: str
    faces: int
    left_out: int
    """Faces of the split whose class the mapping leaves out."""
    mapping: Mapping[str, str]
    """Dataset class -> network class."""
    tta: str
    ten_crop: int
    """Side from which ten crops of each face were cut, by the run's setting or by tta; 0: none."""
    loader: str
    precision: str
    batch_size: int
    ranks: int
    device: str
    other_data: str = ""
    """How the dataset differs from the one that the run was trained on, where the user allowed it."""
    training_samples: int = 0
    """Evaluated samples that the run was trained on."""


class Report(NamedTuple):
    asked: EvalContext
    scores: Scores
    ceiling: float | None
    """Accuracy of the best possible guess, where the true distributions are known."""
    groups: Mapping[str, Sequence[Subgroup]]
    """Field -> its groups."""
    distances: Distances | None
    """None without votes."""

    def to_dict(self) -> dict[str, object]:
        """For JSON: plain values, null for what is not defined."""
        values = to_jsonable(self)
        assert isinstance(values, dict)
        return {"schema_version": SCHEMA_VERSION, **values}

    def __str__(self) -> str:
        parts = [
            self.asked_of(),
            self.summary(),
            class_table(self.scores.classes),
            confusion_table(self.scores),
            calibration_table(self.scores.calibration),
            *(group_table(field, groups) for field, groups in self.groups.items()),
            "nobody voted on these faces: no distances" if self.distances is None else distance_table(self.distances),
        ]
        return "\n\n".join(parts)

    def asked_of(self) -> str:
        asked = self.asked
        out = f" ({asked.left_out:,} more left out by the mapping)" if asked.left_out else ""
        seen = f", ten crops from {asked.ten_crop}" if asked.ten_crop else ", and mirrored" * (asked.tta == "flip")
        lines = [
            f"{asked.checkpoint}, epoch {asked.epoch}",
            f"{asked.dataset}, {asked.split}: {asked.faces:,} faces{out}; {asked.loader}, {asked.precision}{seen}",
            *describe_origin(Origin(asked.other_data, asked.training_samples), asked.faces),
        ]
        return "\n".join(lines)

    def summary(self) -> str:
        scores = self.scores
        lines = [
            f"accuracy             {format_percent(scores.accuracy)}, Wilson",
            f"mean class accuracy  {format_percent(scores.mean_class_accuracy)}, bootstrap over faces",
            f"macro F1             {format_percent(scores.macro_f1)}, bootstrap over faces",
        ]
        if self.ceiling is not None:
            lines.append(f"ceiling              {self.ceiling:7.2%}  best possible guess, by the true distributions")
        return "\n".join(lines)


def class_table(classes: Sequence[ClassScore]) -> str:
    rows = [
        [c.name, f"{c.faces:,}", f"{c.predicted:,}", *map(format_float, (c.precision, c.recall, c.f1))] for c in classes
    ]
    return table(["class", "faces", "predicted", "precision", "recall", "F1"], rows)


def confusion_table(scores: Scores) -> str:
    names = [score.name for score in scores.classes]
    rows = [[name, *map(str, row)] for name, row in zip(names, scores.confusion.tolist(), strict=True)]
    return "confusion: a row an annotated class, a column a predicted one\n" + table(["", *names], rows)


def calibration_table(calibration: Calibration) -> str:
    rows = [
        [f"{b.low:.2f} to {b.high:.2f}", f"{b.faces:,}", format_float(b.confidence), format_float(b.accuracy)]
        for b in calibration.bins
        if b.faces
    ]
    head = (
        f"calibration: ECE {calibration.ece:.4f} ({BINS} bins of equal width, predicted class), "
        f"Brier {calibration.brier:.4f} (0 to 2), NLL {calibration.nll:.4f} nats"
    )
    return head + "\n" + table(["confidence", "faces", "mean", "accuracy"], rows)


def group_table(field: str, groups: Sequence[Subgroup]) -> str:
    return table([field, "faces", "accuracy"], [[g.name, f"{g.faces:,}", format_percent(g.accuracy)] for g in groups])


def distance_table(distances: Distances) -> str:
    """Two lines a measure: the means, and their intervals."""
    rows = []
    for measure in next(iter(distances.measures.values())):
        means = [of[measure] for of in distances.measures.values()]
        rows.append([measure.replace("_", "-"), *(f"{mean.value:.4f}" for mean in means)])
        rows.append(["", *("{:.3f} to {:.3f}".format(*mean.interval) for mean in means)])
    head = (
        f"distance from the votes of {distances.faces:,} faces: means, 95 % bootstrap intervals; less is better, but "
        f"for {' and '.join(SIMILARITIES)};\nkl and jensen-shannon in nats; kl counts q as {FLOOR:g} at least, which "
        "decides its figure for one-hot"
    )
    return head + "\n" + table(["", *distances.measures], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need, the first flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def lines() -> Iterator[str]:
        for row in (head, *rows):
            cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            yield "  ".join([row[0].ljust(widths[0]), *cells]).rstrip()

    return "\n".join(lines())


def format_float(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def format_percent(measured: Estimate) -> str:
    low, high = measured.interval
    return f"{measured.value:7.2%}  95 % interval {low:.2%} to {high:.2%}"


def to_jsonable(value: object) -> object:
    """What JSON can hold: names for the fields of tuples, lists for arrays, null for NaN."""
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
