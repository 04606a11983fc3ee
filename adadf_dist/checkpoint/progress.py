"""How far a run is."""

from __future__ import annotations

from dataclasses import dataclass, field

from adadf_dist.config.learning_rate import Position


@dataclass
class TrainingProgress:
    """How far a run is, and what it has measured so far."""

    epoch: int = 0
    """Finished epochs."""
    batch: int = 0
    """Finished batches of the epoch under way."""
    step: int = 0
    """Finished steps of the run."""
    best_epoch: int = 0
    """Epoch (from 1) with the best validation accuracy so far; 0: none yet. Ties stay with the earlier one."""
    best_accuracy: float = -1.0
    seconds: float = 0.0
    """Time spent in finished training passes, over all the run's sessions."""
    epochs: list[dict[str, object]] = field(default_factory=list)
    """One record a finished epoch, as in metrics.jsonl."""

    def position(self, num_batches: int) -> Position:
        """When the next step is, in an epoch of so many batches."""
        return Position(self.epoch, self.step, self.epoch + self.batch / num_batches, num_batches)

    def last_position(self, num_batches: int) -> Position:
        """When the last step was, in an epoch of which some batch is finished."""
        return Position(self.epoch, self.step - 1, self.epoch + (self.batch - 1) / num_batches, num_batches)

    def finish_epoch(self, accuracy: float, record: dict[str, object]) -> None:
        """Count an epoch with its validation accuracy."""
        self.epoch += 1
        self.batch = 0
        self.epochs.append(record)
        if accuracy > self.best_accuracy:
            self.best_epoch, self.best_accuracy = self.epoch, accuracy
