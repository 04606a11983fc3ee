"""Comparable accuracies of a search: every trial at the same number of epochs, even if it trained longer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tune.study.study import Study
from tune.study.trial import TrialResult


class MatchedResults(NamedTuple):
    """Search trials (including the default) and the accuracy of each at the same epoch."""

    epochs: int | None
    """None: no early stopping; finished trials are compared at their best epoch."""
    outcomes: tuple[TrialResult, ...]
    accuracies: tuple[float, ...]
    """Best validation accuracy of each outcome within these epochs."""

    @property
    def accuracy(self) -> str:
        """Label of the accuracy."""
        return "validation accuracy" if self.epochs is None else f"validation accuracy by epoch {self.epochs}"


def match_budgets(study: Study, outcomes: Sequence[TrialResult]) -> MatchedResults:
    """Compare trials at the first rung, which every trial reaches.

    Survivors of later rungs were selected by accuracy. Among them an important hyperparameter would seem unimportant,
    because its poor values were pruned.
    """
    rungs = study.options.halving.rungs if study.options.halving else []
    epochs = rungs[0] if rungs else None
    searched = [o for o in outcomes if o.trial.stage == "search" and o.status != "failed" and o.epochs]
    there = [o for o in searched if (o.status == "finished" if epochs is None else o.epochs >= epochs)]
    return MatchedResults(epochs, tuple(there), tuple(max(o.accuracies[:epochs]) for o in there))
