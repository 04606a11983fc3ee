"""Show training progress on rank 0's console: a progress bar or lines within an epoch, and a table of epochs."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Never

from tqdm import tqdm

from adadf_dist.checkpoint.progress import TrainingProgress
from adadf_dist.config.schema import Config
from adadf_dist.console.formats import format_duration
from adadf_dist.console.progress import Pace

HEADER_EVERY = 20
"""Number of table rows (epochs) after which the header is repeated."""
HEADER = "epoch    loss      kl      ce     val acc  mean class  classes>=t      lr  images/s        ETA"
LEGEND = (
    "* best validation accuracy so far; mean class: validation accuracy averaged over classes; classes>=t: number of "
    "classes (of {classes}) whose mean predicted probability of the class itself reaches the threshold t (eq 7)"
)


class EpochDisplay:
    """Counts the samples and seconds of an epoch, and shows its progress. Never waits for the device."""

    def __init__(self, config: Config, visible: bool, print_line: Callable[[str], None]) -> None:
        self.losses = ""
        """Most recently logged losses, formatted for display."""
        self._config = config
        self._visible = visible
        self._print_line = print_line
        self._bar: tqdm[Never] | None = None
        self._pace = Pace()
        self._began = time.monotonic()
        self._images = 0
        self._num_batches = 0

    @property
    def seconds(self) -> float:
        """Seconds since this process began or resumed the epoch."""
        return time.monotonic() - self._began

    @property
    def images_per_s(self) -> float:
        """Samples per second in this epoch, over all ranks."""
        return self._images / max(self.seconds, 1e-9)

    def start(self, progress: TrainingProgress, num_batches: int, announce: bool) -> None:
        """Start or resume an epoch. If no bar is shown, `announce` prints the epoch's number and length."""
        self._began = time.monotonic()
        self._pace = Pace()
        self._images = 0
        self._num_batches = num_batches
        self.losses = ""  # do not show losses of the previous epoch
        where = f"epoch {progress.epoch + 1}/{self._config.epochs}"
        if self._visible and sys.stderr.isatty():
            self._bar = tqdm(
                total=num_batches,
                initial=progress.batch,
                desc=where,
                unit="batch",
                leave=False,
                dynamic_ncols=True,
            )
        elif announce:
            self._print_line(f"training: {where}, {num_batches} batches per epoch")

    def add(self, images: int) -> None:
        """Add the number of samples in a step, over all ranks."""
        self._images += images

    def show(self, progress: TrainingProgress) -> None:
        """Show the latest logged losses and the image rate, if a bar is shown or the next line is due."""
        if not self._visible or (self._bar is None and not self._pace.due()):
            return
        rate = f"{self.losses}{self.images_per_s:.0f} images/s"
        if self._bar is not None:
            self._bar.set_postfix_str(rate, refresh=False)
            self._bar.update()
            return
        left = (self._num_batches - progress.batch) * self.seconds / max(self._done(progress), 1)
        where = f"epoch {progress.epoch + 1}/{self._config.epochs} batch {progress.batch}/{self._num_batches}"
        self._print_line(f"{where} | {rate} | epoch ETA {format_duration(left)}")

    def _done(self, progress: TrainingProgress) -> int:
        """Return the number of batches of this epoch that this process has trained on."""
        return math.ceil(self._images / self._config.batch_size) if self._images else progress.batch

    def close(self) -> None:
        """Remove the progress bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def format_heading(progress: TrainingProgress, first: bool, classes: int) -> list[str]:
    """Return the header lines to print above an epoch's row. `first`: whether this is the first row of this process."""
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
