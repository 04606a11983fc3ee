"""Identity of a run's data (dataset location, digests, samples), to detect resuming on other data."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from adadf_dist.config.fields import Role
from adadf_dist.config.keys import keys_with, upgrade_keys
from adadf_dist.console.logs import get_logger
from adadf_dist.data.dataset import Split
from adadf_dist.errors import UserError

logger = get_logger(__name__)

DATA_FILE = "data.json"
"""File in the run directory: a `Source` and the digests of the files that the configuration names."""
ALLOW_OTHER_DATA = "--allow-other-data"
ALLOW_TRAINING_SAMPLES = "--allow-training-samples"
SHOWN_DIGITS = 12


class Source(NamedTuple):
    """A dataset's location and digests at one time."""

    shards: str
    """Absolute path or URL."""
    digests: Mapping[str, str]
    """Split -> `Manifest.digests`; empty if unknown."""

    def to_dict(self) -> dict[str, object]:
        return {"shards": self.shards, "digests": dict(self.digests)}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Source:
        return Source(values["shards"], values["digests"])


class TrainedOn(NamedTuple):
    """Data identity stored in a checkpoint."""

    source: Source
    samples: NDArray[np.int64]
    """[S] digests of the training samples' keys."""
    earlier: tuple[Source, ...] = ()
    """Earlier data of a run that was resumed on other data with the user's permission."""

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> TrainedOn:
        earlier = tuple(map(Source.from_dict, state["earlier"]))
        return TrainedOn(Source.from_dict(state["source"]), state["samples"].numpy(), earlier)


class DataRecord:
    """Checkpoint state that identifies the data; a resuming run compares it with its own."""

    def __init__(self, source: Source, train: Split, files: Mapping[str, str], allow_other: bool) -> None:
        """`files`: what `digest_files` returns."""
        self.source = source
        self.files = dict(files)
        self.earlier: list[Source] = []
        self._samples = torch.from_numpy(key_digests(train.keys))
        self._allow_other = allow_other

    def state_dict(self) -> dict[str, object]:
        return {**self.to_dict(), "samples": self._samples}

    def to_dict(self) -> dict[str, object]:
        """Plain values, for `DATA_FILE`."""
        return {"source": self.source.to_dict(), "files": self.files, "earlier": [s.to_dict() for s in self.earlier]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raise `UserError` unless the data matches the checkpoint's or the user allows other data."""
        recorded = TrainedOn.from_state(state)
        self.earlier = list(recorded.earlier)
        if problem := other_data(recorded.source, self.source, recorded.source.digests):
            if not self._allow_other:
                raise UserError(f"the checkpoint {problem}; {how_to_fix()}")
            self.earlier.append(recorded.source)
            logger.warning(f"the checkpoint {problem}; {ALLOW_OTHER_DATA} is given")


def how_to_fix(option: str = "--data.shards DIR") -> str:
    return f"pass the dataset that it was trained on as {option}, or pass {ALLOW_OTHER_DATA} to use this one anyway"


def other_data(recorded: Source, found: Source, splits: Collection[str]) -> str:
    """Describe how a dataset differs from the recorded one in the given splits, naming both; empty if it does not.

    Paths do not matter: a dataset may be moved. Splits that were not recorded are not compared.
    """
    for split in splits:
        before, now = recorded.digests.get(split), found.digests.get(split)
        if before is not None and before != now:
            current = f"digest {now[:SHOWN_DIGITS]}" if now else f"no {split} split"
            return (
                f"was trained on other data: {recorded.shards}, split {split} with digest {before[:SHOWN_DIGITS]}; "
                f"{found.shards} has {current}"
            )
    return ""


def key_digests(keys: Sequence[str] | NDArray[Any]) -> NDArray[np.int64]:
    """[S] 64-bit digests of the keys: unique enough to identify samples, with a fixed size."""
    content = b"".join(hashlib.blake2b(str(key).encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(content, dtype="<i8").astype(np.int64)


def count_shared(samples: NDArray[np.int64], split: Split) -> int:
    """Number of samples of a split whose keys are among `samples` (`key_digests`)."""
    return int(np.isin(key_digests(split.keys), samples).sum())


def digest_files(settings: Mapping[str, object]) -> dict[str, str]:
    """SHA-256 of each file that a key with `Role.INPUT_FILE` names; unreadable files are skipped."""
    digests = {}
    for key in sorted(keys_with(Role.INPUT_FILE)):
        try:
            with Path(str(settings[key])).open("rb") as file:
                digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            continue
    return digests


def moved_files(state: Mapping[str, Any] | None, settings: Mapping[str, object]) -> set[str]:
    """Keys with `Role.INPUT_FILE` whose file content matches a checkpoint's `DataRecord`, wherever the file is now."""
    known = {} if state is None else upgrade_keys(state["files"])
    return {key for key, digest in digest_files(settings).items() if known.get(key) == digest}
