"""Read a run folder for its report. The run may be in progress."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adadf_dist.config.load import ConfigLayer, build_config, load_config_file
from adadf_dist.config.schema import Config
from adadf_dist.data.identity import DATA_FILE, Source
from adadf_dist.errors import UserError
from adadf_dist.files.old_formats import find_file, upgrade_fields
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
"""History arrays that are not loaded, to save memory."""


@dataclass(frozen=True, eq=False)
class RunData:
    """Contents of a run folder. In shapes, E is the number of finished epochs and C the number of classes."""

    folder: Path
    config: Config
    info: Record
    """Contents of run_info.json."""
    epochs: tuple[Record, ...]
    """Records of the E finished epochs, at least one."""
    result: Record | None
    """Content of result.json; None before the run has finished."""
    data: Record | None = None
    """Contents of data.json; None for runs from older versions."""
    _predictions: dict[str, SavedPredictions | None] = field(default_factory=dict, init=False)
    """Split -> predictions loaded so far; None if the run has not saved any for the split."""

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def source(self) -> Source | None:
        """Dataset that the run was trained on; None for runs of older versions."""
        return None if self.data is None else Source.from_dict(self.data["source"])

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.info["classes"])

    @property
    def finished(self) -> bool:
        return self.result is not None and self.result["epochs"] == len(self.epochs)

    @property
    def test(self) -> Record | None:
        """Test metrics of the selected epoch; None unless the run has finished and was tested."""
        return self.result["test"] or None if self.finished and self.result is not None else None

    @property
    def best(self) -> Record:
        """Record of the selected epoch: the first with the best validation accuracy."""
        return max(self.epochs, key=lambda record: float(record["validation"]["accuracy"]))

    def values(self, name: str) -> NDArray[np.float64]:
        """Return the value of a training or validation metric in every epoch, [E]; NaN where it is missing."""
        found = [record.get(name, record["validation"].get(name)) for record in self.epochs]
        return np.array(found, dtype=np.float64)  # None becomes NaN

    @property
    def epoch_numbers(self) -> NDArray[np.int64]:
        """[E], numbers of the finished epochs, counted from 1."""
        return np.array([record["epoch"] for record in self.epochs])

    @cached_property
    def history(self) -> tuple[Arrays, ...]:
        """Recorded per-sample and per-class arrays of each finished epoch; empty if any file is missing."""
        paths = [self.folder / "history" / f"epoch-{number:04d}.npz" for number in self.epoch_numbers]
        if not all(path.is_file() for path in paths):
            return ()
        return tuple({name: a for name, a in load_npz(path).items() if name not in SKIPPED_ARRAYS} for path in paths)

    @cached_property
    def samples(self) -> SampleTable | None:
        """Table of the training samples; None if the run did not save it."""
        return load_samples(self.folder) if find_file(self.folder, SAMPLES_FILE).is_file() else None

    def predictions(self, split: str) -> SavedPredictions | None:
        if split not in self._predictions:
            exists = self.finished and find_file(self.folder, f"predictions-{split}.npz").is_file()
            self._predictions[split] = load_predictions(self.folder, split) if exists else None
        return self._predictions[split]

    def stack_history(self, name: str) -> NDArray[np.float64]:
        """Return an array of the history stacked over the epochs, [E, ...]."""
        return np.stack([epoch[name] for epoch in self.history]).astype(np.float64)


def open_run(folder: Path) -> RunData:
    """Read a run folder. Raises `UserError` if it is not a run folder or has no finished epoch."""
    if not (folder / "config.yaml").is_file():
        what = "not a run folder of adadf_dist.train" if folder.is_dir() else "no such run folder"
        raise UserError(f"{folder}: {what}; pass a run folder (the --out of a training run)")
    settings = load_config_file(folder / "config.yaml").values
    config = build_config([ConfigLayer(str(folder / "config.yaml"), settings)])
    epochs = tuple(read_epochs(folder / "metrics.jsonl"))
    if not epochs:
        raise UserError(f"{folder}: the run has not finished an epoch yet; try again later")
    info, result, data = (read_json(find_file(folder, name)) for name in ("run_info.json", "result.json", DATA_FILE))
    if info is None:
        raise UserError(f"{folder / 'run_info.json'}: missing; copy the run folder again")
    return RunData(folder, config, info, epochs, result, data)


def read_epochs(path: Path) -> Iterator[Record]:
    """Yield the epoch records in order. Skips truncated lines, which remain after a crash or during a write."""
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with suppress(json.JSONDecodeError, UnicodeDecodeError):
            record = upgrade_fields(json.loads(line))
            if record["kind"] == "epoch":
                yield record


def read_json(path: Path) -> Record | None:
    """Return the content of a JSON file; None if it does not exist. Raises `UserError` if it cannot be parsed."""
    try:
        value: dict[str, Any] = upgrade_fields(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: parse error ({error}); copy the file again") from None
    return value
