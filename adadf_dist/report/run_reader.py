"""A run folder, opened for its report: all that training left there, finished or not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adadf_dist.config.load import ConfigLayer, build_config, load_config_file
from adadf_dist.config.schema import Config
from adadf_dist.data.identity import DATA_FILE, Source
from adadf_dist.errors import UserError
from adadf_dist.tracking.artifacts import (
    SAMPLES_FILE,
    SampleTable,
    SavedPredictions,
    load_npz,
    load_predictions,
    load_samples,
)

Record = Mapping[str, Any]
Arrays = Mapping[str, NDArray[Any]]
SKIPPED_ARRAYS = ("loss", "correct")
"""Of the history, which of a large dataset takes room."""


@dataclass(frozen=True, eq=False)
class RunData:
    """What a report may say of a run. E epochs are finished, C is the number of classes."""

    folder: Path
    config: Config
    facts: Record
    """run.json."""
    epochs: tuple[Record, ...]
    """[E], at least one."""
    result: Record | None
    """result.json, once the run is finished."""
    data: Record | None = None
    """data.json; None of a run of an older version."""

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def source(self) -> Source | None:
        """The dataset that the run was trained on."""
        return None if self.data is None else Source.from_dict(self.data["source"])

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.facts["classes"])

    @property
    def finished(self) -> bool:
        return self.result is not None and self.result["epochs"] == len(self.epochs)

    @property
    def best(self) -> Record:
        """The selected epoch's record: the best on validation, the earliest of equals."""
        return max(self.epochs, key=lambda record: float(record["validation"]["accuracy"]))

    def values(self, name: str) -> NDArray[np.float64]:
        """[E], of a figure of the epoch or of its validation; NaN where it is missing."""
        found = [record.get(name, record["validation"].get(name)) for record in self.epochs]
        return np.array([np.nan if value is None else value for value in found], dtype=np.float64)

    @property
    def epoch_numbers(self) -> NDArray[np.int64]:
        """[E], of the finished epochs, from 1."""
        return np.array([record["epoch"] for record in self.epochs])

    @cached_property
    def history(self) -> tuple[Arrays, ...]:
        """What each finished epoch left of faces and classes; empty where the files are not all there."""
        paths = [self.folder / "history" / f"epoch-{number:04d}.npz" for number in self.epoch_numbers]
        if not all(path.is_file() for path in paths):
            return ()
        return tuple({name: a for name, a in load_npz(path).items() if name not in SKIPPED_ARRAYS} for path in paths)

    @cached_property
    def faces(self) -> SampleTable | None:
        """Of training."""
        return load_samples(self.folder) if (self.folder / SAMPLES_FILE).is_file() else None

    def predictions(self, split: str) -> SavedPredictions | None:
        if split not in self._answers:
            there = self.finished and (self.folder / f"answers-{split}.npz").is_file()
            self._answers[split] = load_predictions(self.folder, split) if there else None
        return self._answers[split]

    @cached_property
    def _answers(self) -> dict[str, SavedPredictions | None]:
        return {}

    def stack_history(self, name: str) -> NDArray[np.float64]:
        """[E, ...], an array of the history over epochs."""
        return np.stack([epoch[name] for epoch in self.history]).astype(np.float64)


def open_run(folder: Path) -> RunData:
    """Raises `UserError` for what is no run folder, and for a run of which no epoch is finished."""
    if not (folder / "config.yaml").is_file():
        what = "is no run folder of adadf_dist.train" if folder.is_dir() else "no such run folder"
        raise UserError(f"{folder}: {what}; give a folder that training wrote (its --out)")
    settings = load_config_file(folder / "config.yaml").values
    config = build_config([ConfigLayer(str(folder / "config.yaml"), settings)])
    epochs = tuple(read_epochs(folder / "metrics.jsonl"))
    if not epochs:
        raise UserError(f"{folder}: no epoch is finished yet, so there is nothing to report; wait for the first")
    facts, result, data = (read_json(folder / name) for name in ("run.json", "result.json", DATA_FILE))
    if facts is None:
        raise UserError(f"{folder / 'run.json'}: missing; copy the run folder again")
    return RunData(folder, config, facts, epochs, result, data)


def read_epochs(path: Path) -> Iterator[Record]:
    """Records of whole epochs, in order; a line that a crash tore, or that is just being written, is passed over."""
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with suppress(json.JSONDecodeError, UnicodeDecodeError):
            record = json.loads(line)
            if record["kind"] == "epoch":
                yield record


def read_json(path: Path) -> Record | None:
    """None where there is none. Raises `UserError` for one that does not parse."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: does not parse ({error}); copy it again") from None
    return value
