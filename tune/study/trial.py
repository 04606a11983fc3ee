"""Trials: training runs of a search, each in its own folder, which records its status."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from adadf_dist.config.keys import upgrade_keys
from adadf_dist.errors import UserError
from adadf_dist.files.atomic import write_json
from adadf_dist.files.old_formats import find_file, upgrade_fields
from tune.study.space import Values

TRIAL_FILE = "trial.json"
DEFAULT = 0
"""Configuration number of the default configuration, which changes no values."""
METRIC = "accuracy"
"""Name of the metric that trials report after each epoch: validation accuracy."""
Stage = Literal["search", "final"]
Status = Literal["", "finished", "pruned", "failed"]
"""How a trial ended; empty if it has not ended."""


@dataclass(frozen=True)
class Trial:
    """A training run of a search: a configuration and a seed."""

    number: int
    """Configuration number."""
    seed: int
    stage: Stage
    values: Values
    test: bool = False
    """Whether to evaluate the trial on the test split when training ends."""

    @property
    def name(self) -> str:
        return f"{self.number:04d}-seed{self.seed}"

    def satisfies(self, other: Trial) -> bool:
        """Return whether this trial equals `other`, ignoring a test evaluation that `other` does not require."""
        return replace(self, test=other.test) == other and self.test >= other.test


@dataclass(frozen=True)
class TrialResult:
    """State of a trial, read from its folder."""

    trial: Trial
    status: Status
    error: str
    accuracies: tuple[float, ...] = ()
    """Validation accuracy per epoch."""
    selected: Mapping[str, Any] = field(default_factory=dict)
    """Validation metrics of the selected epoch, as in metrics.jsonl."""
    tested: Mapping[str, Any] = field(default_factory=dict)
    """Test metrics of the selected epoch, as in result.json; empty if the trial is not tested."""

    @property
    def epochs(self) -> int:
        return len(self.accuracies)

    @property
    def best(self) -> float:
        """Best validation accuracy; 0 before the first epoch."""
        return max(self.accuracies, default=0.0)

    @property
    def test(self) -> float | None:
        """Test accuracy of the selected epoch; None if the trial is not tested."""
        return float(self.tested["accuracy"]) if self.tested else None

    @property
    def mean_class_accuracy(self) -> float | None:
        """Validation mean class accuracy of the selected epoch; None before the first epoch."""
        value = self.selected.get("mean_class_accuracy")
        return None if value is None else float(value)


@dataclass(frozen=True)
class TrialStore:
    """The folder that contains a search's trials, one subfolder `NUMBER-seedSEED` per trial; shared by all nodes."""

    path: Path
    _ended: dict[str, TrialResult] = field(default_factory=dict, compare=False, repr=False)
    """Cache of the results of ended trials, so that a large search does not read them repeatedly."""

    def path_of(self, trial: Trial) -> Path:
        return self.path / trial.name

    def begin(self, trial: Trial) -> None:
        """Record the trial's settings in its folder, unless they are already there.

        Raises `UserError` if the folder contains a trial with other settings.
        """
        outcome = self._read(self.path_of(trial))
        if outcome is not None and replace(outcome.trial, test=trial.test) != trial:
            raise UserError(
                f"{self.path_of(trial)}: contains a trial with values {outcome.trial.values}, not {trial.values}; "
                "the search space changed, so choose another --out"
            )
        if outcome is None or not outcome.trial.satisfies(trial):
            self.finish(trial, "")

    def finish(self, trial: Trial, status: Status, error: str = "") -> None:
        self._ended.pop(trial.name, None)
        self.path_of(trial).mkdir(parents=True, exist_ok=True)
        write_json(self.path_of(trial) / TRIAL_FILE, {**asdict(trial), "status": status, "error": error})

    def result(self, trial: Trial) -> TrialResult:
        """Return the trial's state; a trial that lacks a required test evaluation counts as unfinished."""
        outcome = self._read(self.path_of(trial))
        if outcome is None or not outcome.trial.satisfies(trial):
            return TrialResult(trial, "", "") if outcome is None else replace(outcome, trial=trial, status="", error="")
        return outcome

    def classes(self, trial: Trial) -> tuple[str, ...]:
        """Return the class names of a trial's dataset; empty if the trial has not started."""
        path = find_file(self.path_of(trial), "run_info.json")
        return tuple(json.loads(path.read_text(encoding="utf-8"))["classes"]) if path.exists() else ()

    def drop_checkpoints(self, trial: Trial) -> None:
        """Delete an ended trial's checkpoints, but keep its metrics."""
        shutil.rmtree(self.path_of(trial) / "checkpoints", ignore_errors=True)

    def get(self, name: str) -> TrialResult:
        """Return the state of the trial with this name. Raises `UserError` if its folder is missing or not shared."""
        outcome = self._read(self.path / name)
        if outcome is None:
            raise UserError(f"{self.path / name}: trial not found; --out must be a directory shared by all nodes")
        return outcome

    def outcomes(self) -> list[TrialResult]:
        """Return the states of all started trials, ordered by number and seed."""
        found = [self._read(folder) for folder in sorted(self.path.glob("*-seed*"))]
        return [outcome for outcome in found if outcome is not None]

    def _read(self, folder: Path) -> TrialResult | None:
        if folder.name in self._ended:
            return self._ended[folder.name]
        try:
            content = upgrade_fields(json.loads((folder / TRIAL_FILE).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except json.JSONDecodeError as problem:
            raise UserError(f"{folder / TRIAL_FILE}: parse error ({problem}); remove the trial's folder") from None
        status, error = content.pop("status"), content.pop("error")
        if status == "halted":  # version 0.1
            status = "pruned"
        trial = Trial(**{**content, "values": upgrade_keys(content["values"])})
        tested = read_test(folder) if trial.test else {}
        outcome = TrialResult(trial, status, error, *read_validation(folder), tested)
        if status:
            self._ended[folder.name] = outcome
        return outcome


def read_validation(folder: Path) -> tuple[tuple[float, ...], Mapping[str, Any]]:
    """Return the validation accuracy of each epoch in a run folder, and all validation metrics of the best epoch."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    accuracies: list[float] = []
    selected: Mapping[str, Any] = {}
    for line in lines:
        with suppress(json.JSONDecodeError):  # a line truncated by a crash; the resumed run rewrites it
            if line.startswith('{"kind": "epoch"'):
                validation = json.loads(line)["validation"]
                if not accuracies or validation["accuracy"] > max(accuracies):
                    selected = validation
                accuracies.append(float(validation["accuracy"]))
    return tuple(accuracies), selected


def read_test(folder: Path) -> Mapping[str, Any]:
    path = folder / "result.json"
    test: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))["test"] if path.exists() else {}
    return test
