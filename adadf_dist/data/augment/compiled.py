"""Functions compiled by numba and cached on disk for the next process, if a cache directory is writable."""

from __future__ import annotations

from typing import Any

from numba import njit

from adadf_dist.console.logs import get_logger

logger = get_logger(__name__)

NO_CACHE = (
    "compiled code cannot be cached here, so every start compiles it again; set NUMBA_CACHE_DIR to a writable directory"
)
_uncached: list[str] = []
"""Functions that each process compiles, because neither the package directory nor the user's cache is writable."""


def compiled(function: Any) -> Any:
    """Compile at the first call. Releases the GIL, so threads run in parallel."""
    try:
        return njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # numba: cannot cache function, no locator available
        _uncached.append(function.__name__)
        return njit(nogil=True, error_model="numpy")(function)


def report_uncached() -> None:
    """Print once to standard error if compiled code cannot be cached."""
    if _uncached:
        logger.info(f"note: {NO_CACHE}")
        _uncached.clear()
