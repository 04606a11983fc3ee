"""Training progress of a run, as saved in its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field

from adadf_dist.config.learning_rate import Position


@dataclass
class TrainingProgress:
    """How far a run has trained, and its epoch records so far."""

    epoch: int = 0
    """Number of finished epochs."""
    batch: int = 0
    """Number of finished batches in the current epoch."""
    step: int = 0
    """Number of finished training steps over all epochs."""
    best_epoch: int = 0
    """Epoch (from 1) with the best validation accuracy so far, the earliest if tied; 0 if no epoch has finished."""
    best_accuracy: float = -1.0
    seconds: float = 0.0
    """Time spent in finished training passes, including those before a resume."""
    epochs: list[dict[str, object]] = field(default_factory=list)
    """One record per finished epoch, as in metrics.jsonl."""

    def position(self, num_batches: int) -> Position:
        """Return the position of the next training step in the run, given the number of batches per epoch."""
        return Position(self.epoch, self.step, self.epoch + self.batch / num_batches, num_batches)

    def last_position(self, num_batches: int) -> Position:
        """Return the position of the last finished training step. The epoch must have at least one finished batch."""
        return Position(self.epoch, self.step - 1, self.epoch + (self.batch - 1) / num_batches, num_batches)

    def finish_epoch(self, accuracy: float, record: dict[str, object]) -> None:
        """Record a finished epoch and its validation accuracy."""
        self.epoch += 1
        self.batch = 0
        self.epochs.append(record)
        if accuracy > self.best_accuracy:
            self.best_epoch, self.best_accuracy = self.epoch, accuracy
