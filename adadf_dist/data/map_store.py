"""Stored outputs ("maps") of a frozen extractor: one cache entry for a split's samples under one fixed augmentation.

    ENTRY/maps.bin     rows [S, ...] in the order of the split, in the extractor's own data type
    ENTRY/maps.json    size, replaced samples, what the maps depend on; written last, so an entry with it is complete

Several processes of a node write their rows to `maps.bin.partial`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adadf_dist.data.sampling import Samples
from adadf_dist.files.atomic import os_errors_as_user_errors, sync_to_disk, write_json

MAPS, INFO = "maps.bin", "maps.json"


@dataclass(frozen=True)
class MapStore:
    """The maps of S samples in a cache entry."""

    entry: Path
    samples: int
    """S."""
    shape: tuple[int, ...]
    """Shape of one sample's map."""
    dtype: torch.dtype
    origin: Mapping[str, object]
    """What the maps depend on, for the user."""

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.samples * self.row_bytes

    @property
    def partial(self) -> Path:
        return self.entry / f"{MAPS}.partial"

    def is_complete(self) -> bool:
        try:
            return (self.entry / INFO).is_file() and (self.entry / MAPS).stat().st_size == self.nbytes
        except OSError:
            return False

    def create(self) -> None:
        """Create the partial file in its full size, or empty the one that a killed run left. Raises `UserError`."""
        with os_errors_as_user_errors(self.partial), self.partial.open("wb") as file:
            (self.entry / INFO).unlink(missing_ok=True)
            file.truncate(self.nbytes)

    @contextmanager
    def writer(self) -> Iterator[Callable[[int, Tensor], None]]:
        """Yield a function that writes consecutive rows of the partial file, given the first row's index.

        Raises `UserError`, or `DiskFullError` if the disk is full.
        """
        with os_errors_as_user_errors(self.partial), self.partial.open("r+b", buffering=0) as file:

            def write(first: int, maps: Tensor) -> None:
                assert maps.dtype == self.dtype and maps.shape[1:] == self.shape
                content = maps.cpu().contiguous().view(-1).view(torch.uint8).numpy().data
                file.seek(first * self.row_bytes)
                while content:
                    content = content[file.write(content) :]

            yield write

    def finish(self, replaced: Mapping[int, int]) -> None:
        """Complete the entry after all rows have been written.

        `replaced`: for each sample that failed to decode, the sample whose map is stored in its place.
        """
        with os_errors_as_user_errors(self.partial):
            sync_to_disk(self.partial)
            self.partial.replace(self.entry / MAPS)
        kind = str(self.dtype).removeprefix("torch.")
        size = {"samples": self.samples, "shape": list(self.shape), "dtype": kind}
        write_json(self.entry / INFO, {**size, "replaced": sorted(replaced.items()), "origin": dict(self.origin)})

    def load(self) -> tuple[Tensor, Samples]:
        """Return the mapped maps [S, ...], and the index of the sample in each row, [S]."""
        path = str(self.entry / MAPS)
        rows = torch.from_file(path, shared=False, size=self.samples * math.prod(self.shape), dtype=self.dtype)
        members = np.arange(self.samples)
        for row, substitute in json.loads((self.entry / INFO).read_text(encoding="utf-8"))["replaced"]:
            members[row] = substitute
        return rows.view(self.samples, *self.shape), members
