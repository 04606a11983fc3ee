"""Watchdog: a hung rank prints its thread stacks and exits, so that its launcher can restart all ranks.

A collective that waits for a lost peer times out after `runtime.timeout_s`. Without the watchdog, a rank could hang
forever in its own work: a read from a dead file server, a deadlock in a decoder, a driver call that never returns.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from adadf_dist.checkpoint.progress import TrainingProgress
from adadf_dist.distributed.heartbeat import Activity
from adadf_dist.distributed.world import World

DUMP_AFTER = 0.9
"""Fraction of `runtime.timeout_s` without a heartbeat after which thread stacks are printed, before ranks time out."""
KILL_AFTER = 1.5
"""Multiple of `runtime.timeout_s` without a heartbeat after which the process exits."""
FIRST_STEP_FACTOR = 3.0
"""Factor by which `KILL_AFTER` is multiplied before the first step, to allow for compilation and slow first reads."""
EXIT_HUNG = 75
"""Exit status of a rank stopped by its watchdog (EX_TEMPFAIL in sysexits.h: retry)."""
STDERR = 2


class Watchdog:
    """Thread that monitors a rank's heartbeat.

    The thread needs the GIL. If native code hangs while holding it, `faulthandler` prints the stacks from a thread
    without the GIL, and the launcher stops the rank after its peers time out.
    """

    def __init__(self, world: World, progress: TrainingProgress, timeout_s: float) -> None:
        self.world = world
        self.progress = progress
        self.timeout_s = timeout_s
        self._first_step = progress.step
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        tick = min(1.0, self.timeout_s / 20)
        last_beat, silent, dumped = self.world.heartbeat.last, 0.0, False
        checked_at = time.monotonic()
        while not self._closed.wait(tick):
            now = time.monotonic()
            # do not count time in which the process was suspended (Ctrl-Z, SIGSTOP)
            silent, checked_at = silent + min(now - checked_at, 2 * tick), now
            if self.world.heartbeat.last is not last_beat:
                last_beat, silent, dumped = self.world.heartbeat.last, 0.0, False
            if not dumped and silent >= DUMP_AFTER * self.timeout_s:
                dumped = True
                write_stderr(f"{self._describe(last_beat, silent)}; thread stacks:", stacks=True)
            if silent >= self._limit():
                write_stderr(f"{self._describe(last_beat, silent)}; exiting with status {EXIT_HUNG}")
                os._exit(EXIT_HUNG)
            faulthandler.dump_traceback_later(DUMP_AFTER * self.timeout_s, file=STDERR)

    def _limit(self) -> float:
        started = self.progress.step > self._first_step
        return KILL_AFTER * self.timeout_s * (1.0 if started else FIRST_STEP_FACTOR)

    def _describe(self, beat: Activity, silent: float) -> str:
        position = f"epoch {self.progress.epoch + 1}, batch {self.progress.batch + 1}, after step {self.progress.step}"
        process = f"rank {self.world.rank} on {socket.gethostname()} (process {os.getpid()})"
        return f"{process}: no progress for {silent:.0f} s while {beat.doing} ({position})"


def write_stderr(line: str, stacks: bool = False) -> None:
    """Write a message directly to standard error, because a hung thread may hold the locks of Python's buffers."""
    text = f"adadf_dist.train: {line}\n".encode()
    if stacks:
        try:
            with tempfile.TemporaryFile() as file:
                faulthandler.dump_traceback(file)
                file.seek(0)
                text += b"".join(b"    " + row for row in file)
        except OSError:  # no space for a temporary file: write in pieces
            write(text)
            faulthandler.dump_traceback(STDERR)
            return
    write(text)


def write(text: bytes) -> None:
    """Write to standard error, ignoring errors, because a hung rank must exit even if its terminal is gone."""
    with suppress(OSError):
        while text:
            text = text[os.write(STDERR, text) :]


@contextmanager
def run_watchdog(world: World, progress: TrainingProgress, timeout_s: float) -> Iterator[None]:
    """Monitor this rank while the block runs."""
    world.heartbeat.beat("starting")
    watchdog = Watchdog(world, progress, timeout_s)
    try:
        yield
    finally:
        watchdog.close()
