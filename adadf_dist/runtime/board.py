"""TensorBoard events: a convenience, so a disk that refuses them does not end a run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Board:
    """Scalars of a run, until the disk refuses one."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import: only where it is used

        self._folder = folder
        self._writer: SummaryWriter | None = None
        self._try(lambda: self._open(SummaryWriter, purge_step))

    def add(self, section: str, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._try(lambda name=name, value=value: self._add(f"{section}/{name}", value, step))  # type: ignore[misc]

    def flush(self) -> None:
        if self._writer is not None:
            self._try(self._writer.flush)

    def close(self) -> None:
        if self._writer is not None:
            self._try(self._writer.close)

    def _open(self, kind: type[SummaryWriter], purge_step: int) -> None:
        self._writer = kind(str(self._folder), purge_step=purge_step)

    def _add(self, tag: str, value: float, step: int) -> None:
        if self._writer is not None:
            self._writer.add_scalar(tag, value, step)

    def _try(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            self._writer = None
            told = f"warning: {self._folder}: {error.strerror or error}; no more TensorBoard events in this session"
            print(told, file=sys.stderr, flush=True)
