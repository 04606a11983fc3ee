"""Progress within an epoch on rank 0: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Never

from tqdm import tqdm

from adadf_dist.checkpoint.progress import TrainingProgress
from adadf_dist.config.schema import Config
from adadf_dist.console.formats import format_duration
from adadf_dist.console.progress import Pace


class EpochDisplay:
    """Counts the samples and seconds of an epoch, and shows its progress. Never waits for the device."""

    def __init__(self, config: Config, visible: bool, print_line: Callable[[str], None]) -> None:
        self.losses = ""
        """Losses of the last flush, formatted."""
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
        """Samples per second over all ranks."""
        return self._images / max(self.seconds, 1e-9)

    def start(self, progress: TrainingProgress, num_batches: int, announce: bool) -> None:
        """Start or resume an epoch; without a bar, `announce` prints its number and length."""
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
        """Count the samples of a step over all ranks."""
        self._images += images

    def show(self, progress: TrainingProgress) -> None:
        """Show the last flushed losses and the rate, if a bar is open or a line is due."""
        if not self._visible or (self._bar is None and not self._pace.due()):
            return
        seconds = self.seconds
        rate = f"{self.losses}{self._images / max(seconds, 1e-9):.0f} images/s"
        if self._bar is not None:
            self._bar.set_postfix_str(rate, refresh=False)
            self._bar.update()
            return
        left = (self._num_batches - progress.batch) * seconds / max(self._done(progress), 1)
        where = f"epoch {progress.epoch + 1}/{self._config.epochs} batch {progress.batch}/{self._num_batches}"
        self._print_line(f"{where} | {rate} | epoch ETA {format_duration(left)}")

    def _done(self, progress: TrainingProgress) -> int:
        """Return the number of batches of this epoch that this process has trained on."""
        return math.ceil(self._images / self._config.batch_size) if self._images else progress.batch

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
