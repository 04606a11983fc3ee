"""Accuracies of a search that compare: after the same epochs of training, whatever became of the trial later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tune.study.study import Study
from tune.study.trial import TrialResult


class MatchedResults(NamedTuple):
    """Trials of the search, the default among them, and what each has reached by the same epoch."""

    epochs: int | None
    """None: trials that went to their end, by their best epoch; nothing was halted."""
    outcomes: tuple[TrialResult, ...]
    accuracies: tuple[float, ...]
    """Of each outcome, on validation, the best of these epochs."""

    @property
    def accuracy(self) -> str:
        """In words."""
        return "validation accuracy" if self.epochs is None else f"validation accuracy by epoch {self.epochs}"


def match_budgets(study: Study, outcomes: Sequence[TrialResult]) -> MatchedResults:
    """By the first rung, which every trial comes to.

    The survivors of a later rung were chosen by their accuracy: among them a constant that matters seems not to, since
    its poor values are gone.
    """
    rungs = study.options.halving.rungs if study.options.halving else []
    epochs = rungs[0] if rungs else None
    searched = [o for o in outcomes if o.trial.stage == "search" and o.end != "failed" and o.epochs]
    there = [o for o in searched if (o.end == "finished" if epochs is None else o.epochs >= epochs)]
    return MatchedResults(epochs, tuple(there), tuple(max(o.accuracies[:epochs]) for o in there))
