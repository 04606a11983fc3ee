"""Sample configurations based on earlier results, using Optuna's TPE sampler through Ray Tune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from tune.study.space import Domain, Space, Values
from tune.study.study import Study
from tune.study.trial import DEFAULT, METRIC, Trial, TrialResult


class OptunaSearcher(Searcher):
    """Suggests the trials of a search: first the default, then unfinished trials, then new ones sampled by Optuna.

    Optuna's study is rebuilt from the folders of finished trials, so a resumed search knows all of them.
    """

    def __init__(self, study: Study) -> None:
        super().__init__(METRIC, "max")
        self.study = study
        begun = {o.trial.number: o for o in study.trials.outcomes() if o.trial.stage == "search"}
        self._left = [outcome.trial for outcome in begun.values() if not outcome.status]
        self._again: dict[str, Trial] = {}
        """Maps the ID that Ray Tune currently uses for a resumed trial to the trial."""
        if DEFAULT not in begun:
            study.trials.begin(study.default())
            self._left.insert(0, study.default())
        self._numbers = [number for number in range(1, study.options.trials + 1) if number not in begun]
        self._drawn: set[str] = set()
        ended = [o for o in begun.values() if o.status in ("finished", "pruned") and o.trial.number != DEFAULT]
        self._optuna = self._open(ended, len(begun))

    def _open(self, ended: Sequence[TrialResult], begun: int) -> OptunaSearch:
        """Create the Optuna searcher.

        Its seed depends on `begun`, the number of trials started earlier, so a resumed search does not repeat samples.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        (seed,) = np.random.SeedSequence([self.study.base.seed, begun]).generate_state(1)
        return OptunaSearch(
            space={key: distribution(domain) for key, domain in self.study.space.domains.items()},
            metric=METRIC,
            mode="max",
            seed=int(seed),
            points_to_evaluate=[self._point(outcome.trial) for outcome in ended],
            evaluated_rewards=[outcome.accuracies[-1] for outcome in ended],
        )

    def _point(self, trial: Trial) -> dict[str, Any]:
        """Encode a trial's values for Optuna. Inactive keys get a sampled value, because Optuna needs every key."""
        space, seed = self.study.space, self.study.base.seed
        return encode(space, {**space.sample_all(seed, trial.number), **trial.values})

    def suggest(self, trial_id: str) -> Any:
        if self._left:
            trial = self._again[trial_id] = self._left.pop(0)
            return {"trial": trial.name}
        if not self._numbers:
            return Searcher.FINISHED
        values = decode(self.study.space, self._optuna.suggest(trial_id) or {})
        trial = Trial(self._numbers.pop(0), self.study.base.seed, "search", self.study.space.resolve_conditions(values))
        self.study.trials.begin(trial)
        self._drawn.add(trial_id)
        return {"trial": trial.name}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if trial_id in self._drawn:
            self._optuna.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if trial_id in self._drawn:
            self._optuna.on_trial_complete(trial_id, result, error)
        elif result and not error and (trial := self._again[trial_id]).number != DEFAULT:
            self._optuna.add_evaluated_point(self._point(trial), result[METRIC])

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the whole state of the search is in the trials' folders."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the searcher restores its state from the trials' folders when it is created."""


def distribution(domain: Domain) -> BaseDistribution:
    """Return Optuna's distribution for a domain: its values if it is continuous, otherwise their indices.

    Indices are integers if the values are in ascending order, else categories.
    """
    if domain.continuous:
        low, high = domain.values
        return FloatDistribution(low, high, log=domain.kind == "loguniform")
    last = len(domain.values) - 1
    return IntDistribution(0, last) if ordered(domain.values) else CategoricalDistribution(range(last + 1))


def ordered(values: Sequence[Any]) -> bool:
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    return numbers and list(values) == sorted(values)


def encode(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        k: values[k] if domain.continuous else domain.values.index(values[k]) for k, domain in space.domains.items()
    }


def decode(space: Space, drawn: Mapping[str, Any]) -> Values:
    domains = space.domains.items()
    return {key: drawn[key] if domain.continuous else domain.values[drawn[key]] for key, domain in domains}
