"""Write TensorBoard event files. If writing fails (full disk, broken installation), the run continues without them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from adadf_dist.console.logs import get_logger
from adadf_dist.errors import single_line

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = get_logger(__name__)


class TensorBoardSink:
    """Writes a run's scalars to TensorBoard event files. The first error disables it with a warning."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None
        with self._ignore_disk_errors():
            from torch.utils.tensorboard import SummaryWriter  # slow to import: only where it is used

            self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def add(self, section: str, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            with self._ignore_disk_errors():
                if self._writer is not None:
                    self._writer.add_scalar(f"{section}/{name}", value, step)

    def flush(self) -> None:
        with self._ignore_disk_errors():
            if self._writer is not None:
                self._writer.flush()

    def close(self) -> None:
        with self._ignore_disk_errors():
            if self._writer is not None:
                self._writer.close()

    @contextmanager
    def _ignore_disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._disable(f"{self._folder}: {error.strerror or error}; TensorBoard logging disabled")
        except Exception as error:  # a broken installation
            reason = single_line(error) or type(error).__name__
            self._disable(
                f"TensorBoard does not work ({reason}); TensorBoard logging disabled. Fix the installation or set "
                "runtime.tensorboard = false"
            )

    def _disable(self, warning: str) -> None:
        self._writer = None
        logger.warning(warning)
