"""What a run was trained on, so that other data is recognized: where its dataset was, its digests, its samples."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from adadf_dist.config.load import INPUT_FILES
from adadf_dist.data.dataset import Split
from adadf_dist.errors import UserError

DATA_FILE = "data.json"
"""In the run folder: a `Source` and the digests of the files that the configuration names."""
ALLOW_OTHER_DATA = "--allow-other-data"
ALLOW_TRAINING_SAMPLES = "--allow-training-samples"
SHOWN_DIGITS = 12


class Source(NamedTuple):
    """A dataset at one place at one time."""

    shards: str
    """Absolute path, or URL."""
    digests: Mapping[str, str]
    """Split -> `Manifest.digests`; empty where they are not known."""

    def to_dict(self) -> dict[str, object]:
        return {"shards": self.shards, "digests": dict(self.digests)}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Source:
        return Source(values["shards"], values["digests"])


class TrainedOn(NamedTuple):
    """What a checkpoint records of its run's data."""

    source: Source
    samples: NDArray[np.int64]
    """[S] digests of the training samples' keys."""
    earlier: tuple[Source, ...] = ()
    """Data that the run was trained on before it was resumed on other data, which the user allowed."""

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> TrainedOn:
        earlier = tuple(map(Source.from_dict, state["earlier"]))
        return TrainedOn(Source.from_dict(state["source"]), state["samples"].numpy(), earlier)


class DataRecord:
    """The part of a checkpoint that identifies the data; a run that resumes compares its own with it."""

    def __init__(self, source: Source, train: Split, files: Mapping[str, str], allow_other: bool, warn: bool) -> None:
        """`files`: what `digest_files` returns. `warn`: whether this rank prints warnings."""
        self.source = source
        self.files = dict(files)
        self.earlier: list[Source] = []
        self._samples = torch.from_numpy(key_digests(train.keys))
        self._allow_other = allow_other
        self._warn = warn

    def state_dict(self) -> dict[str, object]:
        return {**self.to_dict(), "samples": self._samples}

    def to_dict(self) -> dict[str, object]:
        """Plain values, for `DATA_FILE`."""
        return {"source": self.source.to_dict(), "files": self.files, "earlier": [s.to_dict() for s in self.earlier]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises `UserError` unless the data is what the checkpoint was trained on, or the user allows other data."""
        recorded = TrainedOn.from_state(state)
        self.earlier = list(recorded.earlier)
        if problem := other_data(recorded.source, self.source, recorded.source.digests):
            if not self._allow_other:
                raise UserError(f"the checkpoint {problem}; {how_to_fix()}")
            self.earlier.append(recorded.source)
            if self._warn:
                print(f"warning: the checkpoint {problem}; {ALLOW_OTHER_DATA} is given", file=sys.stderr, flush=True)


def how_to_fix(option: str = "--data.shards DIR") -> str:
    return f"give the dataset that it was trained on as {option}, or {ALLOW_OTHER_DATA} to use this one all the same"


def other_data(recorded: Source, found: Source, splits: Collection[str]) -> str:
    """How a dataset differs from the recorded one in some splits, naming both; empty where it does not.

    Paths do not matter: a dataset may be moved. A split that was not recorded is not compared.
    """
    for split in splits:
        before, now = recorded.digests.get(split), found.digests.get(split)
        if before is not None and before != now:
            has = f"digest {now[:SHOWN_DIGITS]}" if now else f"no {split} split"
            return (
                f"was trained on other data: {recorded.shards}, split {split} with digest {before[:SHOWN_DIGITS]}; "
                f"{found.shards} has {has}"
            )
    return ""


def key_digests(keys: Sequence[str] | NDArray[Any]) -> NDArray[np.int64]:
    """[S], 64 bits a key: as good as the key for finding it again, and of a fixed size."""
    content = b"".join(hashlib.blake2b(str(key).encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(content, dtype="<i8").astype(np.int64)


def count_shared(samples: NDArray[np.int64], split: Split) -> int:
    """Samples of a split whose keys are among `samples` (`key_digests`)."""
    return int(np.isin(key_digests(split.keys), samples).sum())


def digest_files(settings: Mapping[str, object]) -> dict[str, str]:
    """The SHA-256 of each file that a key of `INPUT_FILES` names; what cannot be read is left to its reader."""
    digests = {}
    for key in INPUT_FILES:
        try:
            with Path(str(settings[key])).open("rb") as file:
                digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            continue
    return digests


def moved_files(state: Mapping[str, Any] | None, settings: Mapping[str, object]) -> set[str]:
    """Keys of `INPUT_FILES` whose file has the content that a checkpoint's `DataRecord` noted, wherever it is now."""
    known: Mapping[str, str] = {} if state is None else state["files"]
    return {key for key, digest in digest_files(settings).items() if known.get(key) == digest}
