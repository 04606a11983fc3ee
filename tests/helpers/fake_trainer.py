"""Searches without training: a fake trainer writes its files at accuracies that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import pyarrow.csv
import pytest

from adadf_dist.config.load import ConfigLayer, build_config, override
from adadf_dist.config.schema import Config
from adadf_dist.train import Record
from adadf_dist.training.final_test import Result
from tests.helpers.studies import metrics_of
from tune.runners.execute import run_trial
from tune.study.space import read_space
from tune.study.study import STUDY_FILE, SearchOptions, Study, start
from tune.study.trial import Trial

Curve = Callable[[Config, int], float]
"""Validation accuracy of a run after so many epochs."""


def base(**changed: object) -> Config:
    """A short run; keyword arguments have `__` for the dot."""
    values = {key.replace("__", "."): value for key, value in changed.items()}
    return override(build_config([ConfigLayer("test", {"epochs": 6, "loss.epoch_threshold": 1})]), values)


def study_of(folder: Path, space: dict[str, object], options: SearchOptions, **changed: object) -> Study:
    config = base(**changed)
    return Study(folder, config, read_space("test", space, config), options)


class InProcessRunner:
    """Runs trials one after another in this process."""

    def search(self, study: Study, output: Callable[[], None]) -> None:
        self.run(study, study.search_trials(), output)

    def run(self, study: Study, trials: Sequence[Trial], output: Callable[[], None]) -> None:
        for trial in trials:
            if not study.trials.result(trial).status:
                run_trial(study, trial)
                output()


class Trainer:
    """Replaces `adadf_dist.train.run`: an epoch is a record and a checkpoint, from which a run resumes."""

    def __init__(self, curve: Curve, test: float = 0.5) -> None:
        self.curve = curve
        self.test = test
        self.epochs: list[tuple[str, int]] = []
        """Every epoch that was trained: name of the run folder, epoch."""
        self.tested: list[str] = []
        """Folders of the runs that looked at test."""

    def __call__(self, config: Config, on_epoch: Callable[[Record], None]) -> Result:
        out = Path(config.out)
        (out / "checkpoints").mkdir(parents=True, exist_ok=True)
        metrics = out / "metrics.jsonl"
        saved = out / "checkpoints" / "epoch"
        begun = int(saved.read_text()) if saved.exists() else 0
        lines = metrics.read_text().splitlines(keepends=True)[:begun] if metrics.exists() else []
        metrics.write_text("".join(lines))
        for epoch in range(begun + 1, config.epochs + 1):
            record = {"kind": "epoch", "epoch": epoch, "validation": metrics_of(self.curve(config, epoch))}
            with metrics.open("a") as stream:
                stream.write(json.dumps(record) + "\n")
            saved.write_text(str(epoch))
            self.epochs.append((out.name, epoch))
            on_epoch(record)
        if config.evaluation.run_test:
            self.tested.append(out.name)
        result = Result(1, 0.0, metrics_of(self.test) if config.evaluation.run_test else {}, {}, {})
        (out / "result.json").write_text(json.dumps({"epochs": config.epochs, **result._asdict()}))
        return result


def train_by(monkeypatch: pytest.MonkeyPatch, curve: Curve) -> Trainer:
    """Make trials train by this curve; the page, which takes seconds to draw, is skipped."""
    trainer = Trainer(curve)
    monkeypatch.setattr("tune.runners.execute.run", trainer)
    monkeypatch.setattr("tune.search.write_page", lambda study, outcomes, choice: study.folder / "search.html")
    return trainer


def noise(config: Config) -> float:
    """A number in [-1, 1) that is specific to the run."""
    words = json.dumps([config.seed, config.loss.lambda_min, config.optimizer.lr, config.loss.supervision])
    return (crc32(words.encode()) % 2001 - 1000) / 1000


SPACE: dict[str, object] = {"optimizer.lr": {"grid": [1e-3, 1e-1]}, "loss.lambda_min": {"uniform": [0.0, 0.5]}}
OPTIONS = SearchOptions(seeds=3, trials=6, finalists=2)


def planted(config: Config, epoch: int) -> float:
    """A learning rate of 0.001 is worth 20 points, everything else is noise."""
    good = 0.7 if config.optimizer.lr == 1e-3 else 0.5
    return good + 0.01 * epoch + 0.005 * noise(config)


def flat(config: Config, epoch: int) -> float:
    """No setting matters."""
    return 0.6 + 0.02 * noise(config)


def begun(folder: Path, options: SearchOptions = OPTIONS, **changed: object) -> Study:
    return start(study_of(folder, SPACE, options, **changed), resume=(folder / STUDY_FILE).exists())


def rows(study: Study) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pyarrow.csv.read_csv(study.folder / "trials.csv").to_pylist()
    return found


class Stopped(Exception):  # noqa: N818 - stands for a signal
    """The machine is lost."""
