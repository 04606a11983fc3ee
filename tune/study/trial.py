"""One trial: a training run of the search, in a folder of its own that says how it ended."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from adadf_dist.errors import UserError
from adadf_dist.files.atomic import write_json
from tune.study.space import Values

TRIAL_FILE = "trial.json"
DEFAULT = 0
"""The number of the default configuration, which changes nothing."""
METRIC = "accuracy"
"""What trials report: of the epoch's model on validation."""
Stage = Literal["search", "final"]
status = Literal["", "finished", "halted", "failed"]
"""Empty: not yet."""


@dataclass(frozen=True)
class Trial:
    """A configuration and a seed."""

    number: int
    """Of the configuration."""
    seed: int
    stage: Stage
    values: Values
    test: bool = False
    """Whether the test split is read at its end."""

    @property
    def name(self) -> str:
        return f"{self.number:04d}-seed{self.seed}"

    def satisfies(self, other: Trial) -> bool:
        """Whether what this trial did is all that the other asks for."""
        return replace(self, test=other.test) == other and self.test >= other.test


@dataclass(frozen=True)
class TrialResult:
    """How a trial stands, from its folder."""

    trial: Trial
    end: status
    error: str
    accuracies: tuple[float, ...] = ()
    """On validation, one per epoch."""
    selected: Mapping[str, Any] = field(default_factory=dict)
    """Validation metrics of the selected epoch, as in metrics.jsonl."""
    tested: Mapping[str, Any] = field(default_factory=dict)
    """Metrics of the selected epoch on test, as in result.json; empty where the trial does not read it."""

    @property
    def epochs(self) -> int:
        return len(self.accuracies)

    @property
    def best(self) -> float:
        """Of the epoch that selection on validation takes; 0 before the first."""
        return max(self.accuracies, default=0.0)

    @property
    def test(self) -> float | None:
        """Accuracy of the selected epoch on test; None where the trial does not read it."""
        return float(self.tested["accuracy"]) if self.tested else None

    @property
    def mean_class_accuracy(self) -> float | None:
        """Of the selected epoch on validation; None before the first."""
        value = self.selected.get("mean_class_accuracy")
        return None if value is None else float(value)


@dataclass(frozen=True)
class TrialStore:
    """The folder of all trials of a search: each trial's is `NUMBER-seedSEED`, on storage that all nodes share."""

    path: Path
    _ended: dict[str, TrialResult] = field(default_factory=dict, compare=False, repr=False)
    """Outcomes that will not change, so that a search of many trials does not read them all over and over."""

    def path_of(self, trial: Trial) -> Path:
        return self.path / trial.name

    def begin(self, trial: Trial) -> None:
        """Write down what the trial is, once: a crash later leaves a trial that can be read."""
        outcome = self._read(self.path_of(trial))
        if outcome is not None and replace(outcome.trial, test=trial.test) != trial:
            raise UserError(
                f"{self.path_of(trial)}: holds a trial of {outcome.trial.values}, not {trial.values}; the space has "
                "changed: give another --out"
            )
        if outcome is None or not outcome.trial.satisfies(trial):
            self.finish(trial, "")

    def finish(self, trial: Trial, end: status, error: str = "") -> None:
        self._ended.pop(trial.name, None)
        self.path_of(trial).mkdir(parents=True, exist_ok=True)
        write_json(self.path_of(trial) / TRIAL_FILE, {**asdict(trial), "end": end, "error": error})

    def result(self, trial: Trial) -> TrialResult:
        """Without an end when the folder is of a trial that did less, as one that is now to be tested."""
        outcome = self._read(self.path_of(trial))
        if outcome is None or not outcome.trial.satisfies(trial):
            return TrialResult(trial, "", "") if outcome is None else replace(outcome, trial=trial, end="", error="")
        return outcome

    def classes(self, trial: Trial) -> tuple[str, ...]:
        """Names of the classes that a trial was trained on; empty before it has started."""
        path = self.path_of(trial) / "run.json"
        return tuple(json.loads(path.read_text(encoding="utf-8"))["classes"]) if path.exists() else ()

    def drop_checkpoints(self, trial: Trial) -> None:
        """Of a trial whose end is written down: its figures are kept, its weights are not."""
        shutil.rmtree(self.path_of(trial) / "checkpoints", ignore_errors=True)

    def get(self, name: str) -> TrialResult:
        """Of a trial that began. Raises `UserError` where there is none: are nodes looking at different folders?"""
        outcome = self._read(self.path / name)
        if outcome is None:
            raise UserError(f"{self.path / name}: no such trial here; --out must be a folder that all nodes share")
        return outcome

    def outcomes(self) -> list[TrialResult]:
        """Of all trials that ever began, by number and seed."""
        found = [self._read(folder) for folder in sorted(self.path.glob("*-seed*"))]
        return [outcome for outcome in found if outcome is not None]

    def _read(self, folder: Path) -> TrialResult | None:
        if folder.name in self._ended:
            return self._ended[folder.name]
        try:
            content: dict[str, Any] = json.loads((folder / TRIAL_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except json.JSONDecodeError as problem:
            raise UserError(f"{folder / TRIAL_FILE}: does not parse ({problem}); remove the trial's folder") from None
        end, error = content.pop("end"), content.pop("error")
        trial = Trial(**content)
        tested = read_test(folder) if trial.test else {}
        outcome = TrialResult(trial, end, error, *read_validation(folder), tested)
        if end:
            self._ended[folder.name] = outcome
        return outcome


def read_validation(folder: Path) -> tuple[tuple[float, ...], Mapping[str, Any]]:
    """Validation accuracies of the epochs that a run folder has, in order, and all metrics of the best of them."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    accuracies: list[float] = []
    selected: Mapping[str, Any] = {}
    for line in lines:
        with suppress(json.JSONDecodeError):  # a line that a crash cut short; the resumed run writes it again
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
