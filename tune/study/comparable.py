"""Compare the trials of a search after the same number of epochs, even if some trained longer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tune.study.study import Study
from tune.study.trial import TrialResult


class MatchedResults(NamedTuple):
    """Search trials, including the default, with their accuracies after the same number of epochs."""

    epochs: int | None
    """Number of epochs compared; None without early stopping, when finished trials are compared at their best epoch."""
    outcomes: tuple[TrialResult, ...]
    accuracies: tuple[float, ...]
    """Best validation accuracy of each trial within the first `epochs` epochs."""

    @property
    def accuracy(self) -> str:
        """Description of the compared accuracies, for the report."""
        return "validation accuracy" if self.epochs is None else f"validation accuracy by epoch {self.epochs}"


def match_budgets(study: Study, outcomes: Sequence[TrialResult]) -> MatchedResults:
    """Return the accuracies of search trials at the first rung, which every trial reaches.

    Only accurate trials reach later rungs. Comparing there would make an important hyperparameter seem unimportant,
    because the trials with poor values were already pruned.
    """
    rungs = study.options.halving.rungs if study.options.halving else []
    epochs = rungs[0] if rungs else None
    searched = [o for o in outcomes if o.trial.stage == "search" and o.status != "failed" and o.epochs]
    there = [o for o in searched if (o.status == "finished" if epochs is None else o.epochs >= epochs)]
    return MatchedResults(epochs, tuple(there), tuple(max(o.accuracies[:epochs]) for o in there))
