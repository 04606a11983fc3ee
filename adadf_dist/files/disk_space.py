"""Retry writes while the disk is full."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from adadf_dist.errors import DiskFullError

logger = logging.getLogger(__name__)

FULL_DISK_WAIT_FRACTION = 0.5
"""Maximum wait for disk space as a fraction of the rank timeout, so that waiting ranks do not time out."""


def retry_on_full_disk(write: Callable[[], None], timeout_s: float, on_wait: Callable[[], None]) -> None:
    """Call `write`, retrying with exponential backoff while the disk is full.

    `on_wait` is called before each pause. Re-raises `DiskFullError` after `FULL_DISK_WAIT_FRACTION` of `timeout_s`.
    """
    began, pause = time.monotonic(), min(1.0, timeout_s / 20)
    while True:
        try:
            write()
            return
        except DiskFullError as error:
            left = FULL_DISK_WAIT_FRACTION * timeout_s - (time.monotonic() - began)
            if left <= 0:
                raise
            pause = min(pause, left)
            logger.warning(f"{error}; retrying in {pause:.0f} s ({left:.0f} s left)")
        on_wait()
        time.sleep(pause)
        pause *= 2
