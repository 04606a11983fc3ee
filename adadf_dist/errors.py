"""Errors that a user can fix: each message is one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in the user's input: its message is one line naming what, where and the mend."""


class LostRankError(UserError):
    """Another rank is gone. Not this run's fault: the same command goes on from the last checkpoint."""


class DiskFullError(UserError):
    """There is no room to write; there may be a moment later."""


class RunDirLockedError(UserError):
    """Another run is writing there; it may be over a moment later."""


def single_line(error: object, most: int = 200) -> str:
    """What an error of somebody else's says, fit for the middle of a line."""
    return " ".join(str(error).split())[:most]


def install_or_repair(error: BaseException, extra: str) -> str:
    """What to do about a package of an extra that did not import: install it only where it is not installed."""
    if isinstance(error, ModuleNotFoundError):
        return f"install it with pip install 'adadf_dist[{extra}]'"
    return f"it is installed but broken: pip install --force-reinstall 'adadf_dist[{extra}]', or repair what it names"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, comparing whole keys first and then their last parts."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not close:
        tails = {key.rpartition(".")[2]: key for key in known}
        close = [tails[t] for t in difflib.get_close_matches(word.rpartition(".")[2], tails, n=1)]
    return f"; did you mean {close[0]}?" if close else ""
