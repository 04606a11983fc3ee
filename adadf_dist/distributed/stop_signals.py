"""Handle the signals that ask a run to stop: SIGTERM, SIGINT and SIGHUP."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

DUPLICATE_SIGNAL_WINDOW_S = 2.0
"""Signals within this many seconds count as one, because Ctrl-C arrives from both the terminal and torchrun."""


@contextmanager
def handle_stop_signals(request_stop: Callable[[], None]) -> Iterator[None]:
    """Call `request_stop` on SIGTERM, SIGINT or SIGHUP (sent when the terminal closes).

    Another signal more than `DUPLICATE_SIGNAL_WINDOW_S` seconds after the first one ends the process immediately. Under
    `nohup`, SIGHUP stays ignored.
    """
    requested_at = 0.0

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal requested_at
        now = time.monotonic()
        if requested_at and now - requested_at > DUPLICATE_SIGNAL_WINDOW_S:
            os._exit(128 + number)
        requested_at = requested_at or now
        request_stop()

    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    try:
        previous = {number: signal.signal(number, on_signal) for number in numbers}
    except ValueError:  # not in the main thread: the caller handles signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
