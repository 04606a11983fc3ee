"""Identity of a run's data (location, digests, samples), used to detect whether a run is resumed on other data."""

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
"""File in the run directory that stores the dataset's `Source` and the digests of the configured input files."""
ALLOW_OTHER_DATA = "--allow-other-data"
ALLOW_TRAINING_SAMPLES = "--allow-training-samples"
SHOWN_DIGITS = 12


class Source(NamedTuple):
    """A dataset's location and digests when a run used it."""

    shards: str
    """Absolute path or URL of the dataset."""
    digests: Mapping[str, str]
    """SHA-256 of each split's content, by split name (see `Manifest.digests`); empty if unknown."""

    def to_dict(self) -> dict[str, object]:
        return {"shards": self.shards, "digests": dict(self.digests)}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Source:
        return Source(values["shards"], values["digests"])


class TrainedOn(NamedTuple):
    """Identity of a run's training data, as stored in a checkpoint."""

    source: Source
    samples: NDArray[np.int64]
    """[S], a 64-bit digest of each training sample's key."""
    earlier: tuple[Source, ...] = ()
    """Datasets that the run used before it was resumed on other data with the user's permission."""

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> TrainedOn:
        earlier = tuple(map(Source.from_dict, state["earlier"]))
        return TrainedOn(Source.from_dict(state["source"]), state["samples"].numpy(), earlier)


class DataRecord:
    """Checkpoint state that identifies the training data; a resumed run compares it with its own data."""

    def __init__(self, source: Source, train: Split, files: Mapping[str, str], allow_other: bool) -> None:
        """Record the identity of `source` and `train`; `files` is the result of `digest_files`."""
        self.source = source
        self.files = dict(files)
        self.earlier: list[Source] = []
        self._samples = torch.from_numpy(key_digests(train.keys))
        self._allow_other = allow_other

    def state_dict(self) -> dict[str, object]:
        return {**self.to_dict(), "samples": self._samples}

    def to_dict(self) -> dict[str, object]:
        """Return the content of `DATA_FILE` as JSON-serializable values."""
        return {"source": self.source.to_dict(), "files": self.files, "earlier": [s.to_dict() for s in self.earlier]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raise `UserError` unless the data is the same as in the checkpoint or the user allows other data."""
        recorded = TrainedOn.from_state(state)
        self.earlier = list(recorded.earlier)
        if problem := other_data(recorded.source, self.source, recorded.source.digests):
            if not self._allow_other:
                raise UserError(f"the checkpoint {problem}; {how_to_fix()}")
            self.earlier.append(recorded.source)
            logger.warning(f"the checkpoint {problem}; continuing because of {ALLOW_OTHER_DATA}")


def how_to_fix(option: str = "--data.shards DIR") -> str:
    return f"pass the dataset that it was trained on as {option}, or pass {ALLOW_OTHER_DATA} to use this one anyway"


def other_data(recorded: Source, found: Source, splits: Collection[str]) -> str:
    """Describe the first of `splits` that differs from the recorded dataset; return an empty string if there is none.

    Locations are not compared, because a dataset may be moved. Splits that were not recorded are skipped.
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
    """Return 64-bit digests of the keys, [S]: fixed-size, and unique enough to identify samples."""
    content = b"".join(hashlib.blake2b(str(key).encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(content, dtype="<i8").astype(np.int64)


def count_shared(samples: NDArray[np.int64], split: Split) -> int:
    """Return how many samples of a split have a key whose digest (`key_digests`) is in `samples`."""
    return int(np.isin(key_digests(split.keys), samples).sum())


def digest_files(settings: Mapping[str, object]) -> dict[str, str]:
    """Return the SHA-256 of each readable input file in the configuration, by its key (keys with `Role.INPUT_FILE`)."""
    digests = {}
    for key in sorted(keys_with(Role.INPUT_FILE)):
        try:
            with Path(str(settings[key])).open("rb") as file:
                digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            continue
    return digests


def moved_files(state: Mapping[str, Any] | None, settings: Mapping[str, object]) -> set[str]:
    """Return the configuration keys of input files with the same content as in a checkpoint, whatever their paths."""
    known = {} if state is None else upgrade_keys(state["files"])
    return {key for key, digest in digest_files(settings).items() if known.get(key) == digest}
