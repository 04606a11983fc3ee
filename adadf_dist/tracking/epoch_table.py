"""The table on the console: a row for each epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adadf_dist.checkpoint.progress import TrainingProgress
from adadf_dist.console.progress import duration

HEADER_EVERY = 20
"""Epochs."""
HEADER = "epoch    loss      kl      ce     val acc  mean class  classes>=t      lr  images/s  time left"
LEGEND = (
    "* best validation accuracy so far; mean class: mean of the classes' validation accuracies; classes>=t: classes "
    "whose mean label distribution gives the class itself at least the threshold t (eq 7), out of {classes}"
)


def heading(progress: TrainingProgress, first: bool, classes: int) -> list[str]:
    """Lines above the row of the epoch that has just ended; `first`: of this session."""
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
        f"{record['learning_rate']:7.1e}  {record['images_per_s']:8.0f}  {duration(left):>9}"
    )
