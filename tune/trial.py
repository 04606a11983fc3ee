"""One trial: a training run of the search, in a folder of its own that says how it ended."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist

from adadf_dist.config import Config
from adadf_dist.errors import UserError
from adadf_dist.runtime.folder import write_json
from adadf_dist.settings import override
from adadf_dist.train import Record, run
from tune.halving import Halving
from tune.space import Values

TRIAL_FILE = "trial.json"
Stage = Literal["search", "final"]
End = Literal["", "finished", "halted", "failed"]
"""Empty: not yet."""


@dataclass(frozen=True)
class Trial:
    """A configuration and a seed."""

    number: int
    """Of the configuration; 0 is the default, with no values changed."""
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


class Halt(Exception):  # noqa: N818 - not an error
    """Raised in `on_epoch` on every rank: the trial is not worth going on with."""


@dataclass(frozen=True)
class Folder:
    """The folder of all trials of a search: each trial's is `NUMBER-seedSEED`, on storage that all nodes share."""

    path: Path

    def of(self, trial: Trial) -> Path:
        return self.path / trial.name

    def begin(self, trial: Trial) -> None:
        """Write down what the trial is, once: a crash later leaves a trial that can be read."""
        outcome = self._read(self.of(trial))
        if outcome is None or not outcome.trial.covers(trial):
            self.end(trial, "")

    def end(self, trial: Trial, end: End, error: str = "") -> None:
        self.of(trial).mkdir(parents=True, exist_ok=True)
        write_json(self.of(trial) / TRIAL_FILE, {**asdict(trial), "end": end, "error": error})

    def outcome(self, trial: Trial) -> Outcome:
        """Without an end when the folder is of a trial that did less, as one that is now to be tested."""
        outcome = self._read(self.of(trial))
        if outcome is None or not outcome.trial.covers(trial):
            return Outcome(trial, "", "", () if outcome is None else outcome.accuracies)
        return outcome

    def outcomes(self) -> list[Outcome]:
        """Of all trials that ever began, by number and seed."""
        found = [self._read(folder) for folder in sorted(self.path.glob("*-seed*"))]
        return [outcome for outcome in found if outcome is not None]

    def _read(self, folder: Path) -> Outcome | None:
        try:
            content: dict[str, Any] = json.loads((folder / TRIAL_FILE).read_text())
        except FileNotFoundError:
            return None
        except json.JSONDecodeError as problem:
            raise UserError(f"{folder / TRIAL_FILE}: does not parse ({problem}); remove the trial's folder") from None
        end, error = content.pop("end"), content.pop("error")
        trial = Trial(**content)
        return Outcome(trial, end, error, read_accuracies(folder), read_test(folder) if trial.test else None)


def read_accuracies(folder: Path) -> tuple[float, ...]:
    """Validation accuracies of the epochs that a run folder has, in order."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines if line.startswith('{"kind": "epoch"') and line.endswith("}")]
    return tuple(float(record["validation"]["accuracy"]) for record in records)


def read_test(folder: Path) -> float | None:
    path = folder / "result.json"
    test = json.loads(path.read_text())["test"] if path.exists() else {}
    return float(test["accuracy"]) if test else None


def ignore(record: Record) -> None:
    pass


def config_of(base: Config, trial: Trial, out: Path) -> Config:
    """The trial's configuration. Of its checkpoints the newest and the selected one are kept."""
    fixed = {"seed": trial.seed, "out": str(out), "evaluation.test": trial.test, "checkpoint.keep": 1}
    return override(base, {**trial.values, **fixed}, f"trial {trial.name}")


def run_trial(
    base: Config, trial: Trial, folder: Folder, halving: Halving | None, report: Callable[[Record], None] = ignore
) -> Outcome:
    """Train, from where the trial's folder stands, until it is done or halving ends it.

    A collective of the ranks that train it. A `UserError` of the run is the trial's failure and is written down; any
    other error is raised, for the trial to be tried again. An interrupted trial has no end.
    """
    main = not dist.is_initialized() or dist.get_rank() == 0
    if main:
        folder.begin(trial)

    def on_epoch(record: Record) -> None:
        report(record)
        if halving is not None and agree(main and halts(folder, trial, halving, record)):
            raise Halt

    end: End = "finished"
    reason = ""
    try:
        if run(config_of(base, trial, folder.of(trial)), on_epoch) is None:
            return folder.outcome(trial)
    except Halt:
        end = "halted"
    except UserError as problem:
        end, reason = "failed", str(problem)
    if main:
        folder.end(trial, end, reason)
    return folder.outcome(trial)


def halts(folder: Folder, trial: Trial, halving: Halving, record: Mapping[str, Any]) -> bool:
    epoch = int(record["epoch"])
    if epoch not in halving.rungs:
        return False
    reached = [outcome for outcome in folder.outcomes() if outcome.trial.stage == "search" and outcome.epochs >= epoch]
    others = [outcome.accuracies[epoch - 1] for outcome in reached if outcome.trial.name != trial.name]
    return not halving.passes(float(record["validation"]["accuracy"]), others)


def agree(answer: bool) -> bool:
    """Rank 0's answer on every rank: it alone looks at the others' folders, which change meanwhile."""
    if not dist.is_initialized():
        return answer
    answers = [answer]
    dist.broadcast_object_list(answers, src=0)
    return answers[0]
