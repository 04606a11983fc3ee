"""Compile functions with numba, and cache them on disk for later processes if a cache directory is writable."""

from __future__ import annotations

from typing import Any

from numba import njit

from adadf_dist.console.logs import get_logger

logger = get_logger(__name__)

NO_CACHE = (
    "compiled code cannot be cached here, so every start compiles it again; set NUMBA_CACHE_DIR to a writable directory"
)
_uncached: list[str] = []
"""Names of functions that cannot be cached, because neither the package nor the user's cache directory is writable."""


def compiled(function: Any) -> Any:
    """Compile a function with numba on its first call.

    The compiled function releases the GIL, so threads run in parallel.
    """
    try:
        return njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # numba: cannot cache function, no locator available
        _uncached.append(function.__name__)
        return njit(nogil=True, error_model="numpy")(function)


def report_uncached() -> None:
    """Log a note, only once, if compiled code cannot be cached."""
    if _uncached:
        logger.info(f"note: {NO_CACHE}")
        _uncached.clear()
