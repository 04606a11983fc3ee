"""Errors that the user can fix, each with a one-line message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Error that the user can fix. Its text is one line: the location and the problem, then a semicolon and a hint.

    The hint may be passed separately or as part of `message`.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)  # both, so that pickling keeps them apart
        self.message = message
        """The problem and its location."""
        self.hint = hint
        """Suggested fix."""

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class LostRankError(UserError):
    """Raised if another rank exited or is unreachable. Running the same command resumes from the last checkpoint."""


class DiskFullError(UserError):
    """Raised if no disk space is left; a retry may succeed."""


class RunDirLockedError(UserError):
    """Raised if another run is writing to the run folder; a retry may succeed."""


def single_line(error: object, most: int = 200) -> str:
    """Return the message of a third-party error as one line, cut to at most `most` characters."""
    return " ".join(str(error).split())[:most]


def install_or_repair(error: BaseException, extra: str) -> str:
    """Return a hint for a failed import of an optional package: how to install it or repair its installation."""
    if isinstance(error, ModuleNotFoundError):
        return f"install it with pip install 'adadf_dist[{extra}]'"
    return f"it is installed but broken: pip install --force-reinstall 'adadf_dist[{extra}]', or fix the reported cause"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?`, where X is the most similar known name, or an empty string if none is similar.

    Dotted keys are compared in full first, then by their last part only.
    """
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not close:
        tails = {key.rpartition(".")[2]: key for key in known}
        close = [tails[t] for t in difflib.get_close_matches(word.rpartition(".")[2], tails, n=1)]
    return f"; did you mean {close[0]}?" if close else ""
