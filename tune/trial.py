"""One trial: a training run of the search, in a folder of its own that says how it ended."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from adadf_dist.errors import UserError
from adadf_dist.runtime.folder import write_json
from tune.space import Values

TRIAL_FILE = "trial.json"
DEFAULT = 0
"""The number of the default configuration, which changes nothing."""
METRIC = "accuracy"
"""What trials report: of the epoch's model on validation."""
Stage = Literal["search", "final"]
End = Literal["", "finished", "halted", "failed"]
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

    def covers(self, other: Trial) -> bool:
        """Whether what this trial did is all that the other asks for."""
        return replace(self, test=other.test) == other and self.test >= other.test


@dataclass(frozen=True)
class Outcome:
    """How a trial stands, from its folder."""

    trial: Trial
    end: End
    error: str
    accuracies: tuple[float, ...]
    """On validation, one an epoch."""
    test: float | None = None
    """Accuracy of the selected epoch on test, where the trial reads it."""

    @property
    def epochs(self) -> int:
        return len(self.accuracies)

    @property
    def best(self) -> float:
        """Of the epoch that selection on validation takes; 0 before the first."""
        return max(self.accuracies, default=0.0)


@dataclass(frozen=True)
class Folder:
    """The folder of all trials of a search: each trial's is `NUMBER-seedSEED`, on storage that all nodes share."""

    path: Path
    _ended: dict[str, Outcome] = field(default_factory=dict, compare=False, repr=False)
    """Outcomes that will not change, so that a search of many trials does not read them all over and over."""

    def of(self, trial: Trial) -> Path:
        return self.path / trial.name

    def begin(self, trial: Trial) -> None:
        """Write down what the trial is, once: a crash later leaves a trial that can be read."""
        outcome = self._read(self.of(trial))
        if outcome is not None and replace(outcome.trial, test=trial.test) != trial:
            raise UserError(
                f"{self.of(trial)}: holds a trial of {outcome.trial.values}, not {trial.values}; the space has "
                "changed: give another --out"
            )
        if outcome is None or not outcome.trial.covers(trial):
            self.end(trial, "")

    def end(self, trial: Trial, end: End, error: str = "") -> None:
        self._ended.pop(trial.name, None)
        self.of(trial).mkdir(parents=True, exist_ok=True)
        write_json(self.of(trial) / TRIAL_FILE, {**asdict(trial), "end": end, "error": error})

    def outcome(self, trial: Trial) -> Outcome:
        """Without an end when the folder is of a trial that did less, as one that is now to be tested."""
        outcome = self._read(self.of(trial))
        if outcome is None or not outcome.trial.covers(trial):
            return Outcome(trial, "", "", () if outcome is None else outcome.accuracies)
        return outcome

    def drop_checkpoints(self, trial: Trial) -> None:
        """Of a trial whose end is written down: its figures are kept, its weights are not."""
        shutil.rmtree(self.of(trial) / "checkpoints", ignore_errors=True)

    def named(self, name: str) -> Outcome:
        """Of a trial that began. Raises `UserError` where there is none: are nodes looking at different folders?"""
        outcome = self._read(self.path / name)
        if outcome is None:
            raise UserError(f"{self.path / name}: no such trial here; --out must be a folder that all nodes share")
        return outcome

    def outcomes(self) -> list[Outcome]:
        """Of all trials that ever began, by number and seed."""
        found = [self._read(folder) for folder in sorted(self.path.glob("*-seed*"))]
        return [outcome for outcome in found if outcome is not None]

    def _read(self, folder: Path) -> Outcome | None:
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
        outcome = Outcome(trial, end, error, read_accuracies(folder), read_test(folder) if trial.test else None)
        if end:
            self._ended[folder.name] = outcome
        return outcome


def read_accuracies(folder: Path) -> tuple[float, ...]:
    """Validation accuracies of the epochs that a run folder has, in order."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    accuracies = []
    for line in lines:
        with suppress(json.JSONDecodeError):  # a line that a crash tore; the run that goes on writes it again
            if line.startswith('{"kind": "epoch"'):
                accuracies.append(float(json.loads(line)["validation"]["accuracy"]))
    return tuple(accuracies)


def read_test(folder: Path) -> float | None:
    path = folder / "result.json"
    test = json.loads(path.read_text(encoding="utf-8"))["test"] if path.exists() else {}
    return float(test["accuracy"]) if test else None
