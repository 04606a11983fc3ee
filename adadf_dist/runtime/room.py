"""A full disk: what has to be written waits for room, what can be written later does not stop training."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from adadf_dist.errors import DiskFullError
from adadf_dist.pulse import Pulse

PATIENCE = 0.5
"""Share of `runtime.timeout_s` that a full disk is waited for: the other ranks wait for this one meanwhile."""


def insist(write: Callable[[], None], timeout_s: float, pulse: Pulse) -> None:
    """`write`, again after growing pauses while the disk is full. Raises its `DiskFullError` when patience is over."""
    began, pause = time.monotonic(), min(1.0, timeout_s / 20)
    while True:
        try:
            write()
            return
        except DiskFullError as error:
            left = PATIENCE * timeout_s - (time.monotonic() - began)
            if left <= 0:
                raise
            pause = min(pause, left)
            print(f"warning: {error}; tries again in {pause:.0f} s, for {left:.0f} s yet", file=sys.stderr, flush=True)
        pulse.beat("waiting for room on the disk")
        time.sleep(pause)
        pause *= 2
