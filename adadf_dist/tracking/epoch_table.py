"""Console table with one row per epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adadf_dist.checkpoint.progress import TrainingProgress
from adadf_dist.console.formats import format_duration

HEADER_EVERY = 20
"""Number of epochs between two headers."""
HEADER = "epoch    loss      kl      ce     val acc  mean class  classes>=t      lr  images/s        ETA"
LEGEND = (
    "* best validation accuracy so far; mean class: mean validation accuracy over classes; classes>=t: number of "
    "classes (of {classes}) whose mean label distribution reaches the threshold t for the class itself (eq 7)"
)


def heading(progress: TrainingProgress, first: bool, classes: int) -> list[str]:
    """Return the lines above an epoch's row. `first`: whether it is the first epoch of this process."""
    legend = [LEGEND.format(classes=classes)] if first else []
    return [*legend, HEADER] if first or len(progress.epochs) % HEADER_EVERY == 1 else []


def describe_epoch(progress: TrainingProgress, record: Mapping[str, object], epochs: int) -> str:
    metrics: Any = record["validation"]
    left = progress.seconds / progress.epoch * (epochs - progress.epoch)
    mark = "*" if progress.best_epoch == progress.epoch else " "
    return (
        f"{progress.epoch:5d} {record['total']:7.4f} {record['kl_divergence']:7.4f} "
        f"{record['cross_entropy']:7.4f}   {metrics['accuracy']:8.2%}{mark}   "
        f"{metrics['mean_class_accuracy']:8.2%}  {record['classes_at_threshold']:>10} "
        f"{record['learning_rate']:7.1e}  {record['images_per_s']:8.0f}  {format_duration(left):>9}"
    )
