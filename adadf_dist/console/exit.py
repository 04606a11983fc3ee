"""Exit a command on an error, with one line on stderr and an exit status instead of a traceback."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Literal, NoReturn

from adadf_dist.console.logs import configure_logging
from adadf_dist.console.terminal import tolerant_console, write_error
from adadf_dist.errors import UserError


@contextmanager
def cli_errors(program: str, rank: int = 0, prints: Literal["log", "report", "data"] = "log") -> Iterator[None]:
    """Turn a `UserError` or an operating-system error into one line on stderr and exit status 2 (Ctrl-C: 130).

    `rank` labels the process's errors and selects its log messages (see `configure_logging`). `prints` is the kind of
    standard output: a `log` may be lost silently, losing part of a `report` is an error at the end, and losing any
    `data` is an error.
    Any other exception is a bug and keeps its traceback.
    """
    configure_logging(rank)
    program = f"{program}[rank {rank}]" if rank else program
    if isinstance(sys.stdout, TextIOWrapper):  # so that class names and paths print in every locale
        sys.stdout.reconfigure(errors="backslashreplace")
    with tolerant_console(("stderr",) if prints == "data" else ("stdout", "stderr")):
        try:
            yield
            if prints == "report" and (lost := flush_error()):
                raise lost
        except UserError as error:
            exit_with_error(program, str(error))
        except UnicodeEncodeError as error:
            if error.encoding.replace("-", "") == "utf8":
                raise
            exit_with_error(
                program, f"the locale cannot encode {ascii(error.object)[:200]}; set PYTHONUTF8=1 or LC_ALL=C.UTF-8"
            )
        except KeyboardInterrupt:
            exit_with_error(program, "interrupted", status=130)
        except BrokenPipeError:  # `... | head` closed the pipe: no message needed
            silence()
            raise SystemExit(1) from None
        except OSError as error:
            fail_for_system(program, error)


def fail_for_system(program: str, error: OSError) -> NoReturn:
    """Exit with a one-line message for an operating-system error, or re-raise it if its cause is unclear."""
    if error.filename is not None:
        exit_with_error(program, f"{os.fspath(error.filename)}: {error.strerror}")
    if error.errno == errno.ENOSPC:
        exit_with_error(program, "no space left on the output disk; free some space, or write to another disk")
    if error.errno == errno.EIO:
        silence()
        exit_with_error(program, "input/output error: the terminal is gone, or a disk does not respond")
    raise error


def flush_error() -> OSError | None:
    """Flush standard output, and return the error because of which printed text was lost, or None."""
    sys.stdout.flush()
    return write_error(sys.stdout)


def silence() -> None:
    """Discard unwritten standard output, so that Python reports no error when it exits."""
    if sys.stdout is sys.__stdout__ and sys.stdout is not None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def exit_with_error(program: str, message: str, status: int = 2) -> NoReturn:
    print(f"{program}: error: {message}", file=sys.stderr, flush=True)
    raise SystemExit(status) from None
