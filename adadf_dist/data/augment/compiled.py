"""Functions compiled by numba, kept on the disk for the next process where there is a place for it."""

from __future__ import annotations

import sys
from typing import Any

from numba import njit

NO_CACHE = (
    "compiled code cannot be kept here, so every start compiles it again; set NUMBA_CACHE_DIR to a folder that can be "
    "written"
)
_uncached: list[str] = []
"""Functions that each process compiles: neither the package's folder nor the user's cache can be written."""


def compiled(function: Any) -> Any:
    """Compile at the first call. Holds no Python lock, so threads work side by side."""
    try:
        return njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # numba: cannot cache function, no locator available
        _uncached.append(function.__name__)
        return njit(nogil=True, error_model="numpy")(function)


def report_uncached() -> None:
    """Say once, on standard error, that compiled code is not kept, if it is not."""
    if _uncached:
        print(f"note: {NO_CACHE}", file=sys.stderr, flush=True)
        _uncached.clear()
