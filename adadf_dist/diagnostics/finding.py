"""What the rules read, and what they find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adadf_dist.config.learning_rate import warmup_steps
from adadf_dist.config.schema import Config

Record = Mapping[str, Any]
"""One epoch, as in metrics.jsonl. Older runs lack some values (`attention`, `class_degrees`, `waiting`): what rests on
them is not judged there."""

MIN_SAMPLES = 10
"""A class with fewer validation samples is not judged: it may go unpredicted by bad luck."""
MIN_STEPS = 200
"""Steps after the warm-up before what a network has not learned yet is called a fault."""


class Severity(IntEnum):
    NOTE = 0
    WARNING = 1
    ERROR = 2

    @property
    def word(self) -> str:
        return self.name.lower()


class Finding(NamedTuple):
    name: str
    severity: Severity
    seen: str
    """What was seen, with figures."""
    mend: str
    """What to try: configuration keys and values."""
    subject: str = ""
    """What it is about, where there is a choice: some classes."""

    @property
    def identity(self) -> tuple[str, int, str]:
        """The same finding with other figures is no news."""
        return self.name, int(self.severity), self.subject

    def __str__(self) -> str:
        return f"{self.severity.word}: {self.name}: {self.seen}; {self.mend}"


@dataclass(frozen=True)
class RunRecords:
    """The finished epochs of a run, at least one, as the rules read them."""

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
        """Epochs after the epoch threshold E."""
        return [record for record in self.records if record["epoch"] > self.config.loss.epoch_threshold]

    @property
    def confusion(self) -> NDArray[np.int64]:
        """[C, C] of the newest epoch's validation: label by prediction."""
        return np.array(self.newest["validation"]["confusion"])

    @property
    def steps_per_epoch(self) -> int:
        """0 where the records do not tell."""
        return round(int(self.newest.get("step", 0)) / self.epoch)

    @property
    def too_early(self) -> str:
        """Why what the network has not learned is no fault yet; empty where it would be one."""
        if not self.steps_per_epoch:
            return ""
        step, warmup = int(self.newest["step"]), warmup_steps(self.config, self.steps_per_epoch)
        after = max(step - warmup, 0)
        if after >= MIN_STEPS:
            return ""
        return f"{after:,} steps after the warm-up of {warmup:,}, {MIN_STEPS} needed"

    def is_judged(self) -> NDArray[np.bool_]:
        """[C], whether validation has enough samples of a class."""
        return np.asarray(self.confusion.sum(axis=1) >= MIN_SAMPLES)


def either(*advice: str) -> str:
    """The advice that applies, as one clause: empty ones are left out."""
    return ", or ".join(text for text in advice if text)
