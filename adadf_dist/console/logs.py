"""Warnings, notes and progress messages of commands, using the standard `logging` module.

Only commands configure it, in `cli_errors`. In other programs the loggers follow the program's own configuration.
"""

from __future__ import annotations

import logging
import sys

from tqdm import tqdm

ROOT = "adadf_dist"
RUN_LOG = f"{ROOT}.run_log"
"""Logger for run output (run info, epoch table), which is written to stdout instead of stderr."""
EVERY_RANK = {"every_rank": True}
"""`extra` for a log message that any rank may print because it concerns only that rank's node or data."""
NO_PREFIX = {"prefix": ""}
"""`extra` for a log message that already contains the word "warning" after a file name, so it gets no prefix."""
PREFIXES = {logging.WARNING: "warning: ", logging.ERROR: "error: "}


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module. Loggers of other packages also become children of the `adadf_dist` logger."""
    return logging.getLogger(name if name.partition(".")[0] == ROOT else f"{ROOT}.{name}")


def configure_logging(rank: int = 0) -> None:
    """Print this process's log messages as lines. Ranks other than 0 print only errors and `EVERY_RANK` messages."""
    logger = logging.getLogger(ROOT)
    for handler in [handler for handler in logger.handlers if isinstance(handler, ConsoleHandler)]:
        logger.removeHandler(handler)
    logger.addHandler(ConsoleHandler(rank))
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a library may have given the root logger a handler, which would print a second line


class ConsoleHandler(logging.Handler):
    """Handler that prints log messages above progress bars. As with `print`, stream errors are raised."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.addFilter(self.is_shown)

    def is_shown(self, record: logging.LogRecord) -> bool:
        return self.rank == 0 or record.levelno >= logging.ERROR or getattr(record, "every_rank", False)

    def format(self, record: logging.LogRecord) -> str:
        prefix = getattr(record, "prefix", PREFIXES.get(record.levelno, ""))
        return f"{prefix}{super().format(record)}"

    def emit(self, record: logging.LogRecord) -> None:
        # looked up for each message: `tolerant_console` and Ray trials replace the streams
        stream = sys.stdout if record.name == RUN_LOG else sys.stderr
        if stream is not None:  # closed when Python started
            tqdm.write(self.format(record), file=stream)
            stream.flush()
