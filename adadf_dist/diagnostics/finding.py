"""Inputs of the diagnostic rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adadf_dist.config.learning_rate import warmup_steps
from adadf_dist.config.schema import Config

Record = Mapping[str, Any]
"""Record of one epoch, as in metrics.jsonl. Rules are skipped if a record of an older run lacks `attention`,
`class_mean_target_prob` or `data_wait_fraction`."""

MIN_SAMPLES = 10
"""Minimum number of validation samples of a class for it to be checked; fewer may go unpredicted by chance."""
MIN_STEPS = 200
"""Minimum number of steps after the warm-up before a lack of learning is reported."""


@dataclass(frozen=True)
class RunRecords:
    """Records of a run's finished epochs (at least one), with the run's configuration and class names."""

    records: Sequence[Record]
    config: Config
    classes: Sequence[str]

    @property
    def newest(self) -> Record:
        return self.records[-1]

    @property
    def epoch(self) -> int:
        return int(self.newest["epoch"])

    @property
    def is_last(self) -> bool:
        """Whether the run has finished its last epoch."""
        return self.epoch >= self.config.epochs

    @property
    def late(self) -> Sequence[Record]:
        """Records of the epochs after the epoch threshold E."""
        return [record for record in self.records if record["epoch"] > self.config.loss.epoch_threshold]

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Validation confusion matrix of the newest epoch, [C, C]; rows: true class, columns: predicted class."""
        return np.array(self.newest["validation"]["confusion"])

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch; 0 if the records do not contain it."""
        return round(int(self.newest.get("step", 0)) / self.epoch)

    @property
    def too_early(self) -> str:
        """Reason why it is too early to report a lack of learning; "" if it is not too early."""
        if not self.steps_per_epoch:
            return ""
        step, warmup = int(self.newest["step"]), warmup_steps(self.config, self.steps_per_epoch)
        after = max(step - warmup, 0)
        if after >= MIN_STEPS:
            return ""
        return f"only {after:,} steps after the warm-up of {warmup:,} steps; at least {MIN_STEPS} are needed"

    @property
    def enough_samples(self) -> NDArray[np.bool_]:
        """[C], whether each class has enough validation samples to be checked."""
        return np.asarray(self.confusion.sum(axis=1) >= MIN_SAMPLES)


def either(*advice: str) -> str:
    """Join the non-empty alternatives in `advice` with "or"."""
    return ", or ".join(text for text in advice if text)
