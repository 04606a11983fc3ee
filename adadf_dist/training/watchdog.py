"""A rank that hangs says where, and ends, so that its launcher can start all of them again.

A collective that waits for a lost peer ends by itself after `runtime.timeout_s`. Nothing ends a rank that hangs in its
own work: a read from a dead file server, a deadlock in a decoder, a driver that never returns.
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
"""Share of `runtime.timeout_s` without a beat after which the stacks are printed: just before the ranks that wait for
a hung one give up."""
KILL_AFTER = 1.5
"""Share of `runtime.timeout_s` without a beat after which the process ends: any phase must be shorter."""
FIRST_STEP_FACTOR = 3.0
"""Factor on `KILL_AFTER` until this process has finished a step: compilation, and a cold file system."""
EXIT_HUNG = 75
"""Exit status of a rank that its watchdog ended (EX_TEMPFAIL of sysexits.h: try again)."""
STDERR = 2


class Watchdog:
    """A thread that looks at a rank's pulse.

    It needs the interpreter lock to look. For native code that hangs without giving it back, `faulthandler` prints the
    stacks from a thread without the lock; such a rank is ended by its launcher, when its peers have given up.
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
        seen, silent, told = self.world.heartbeat.last, 0.0, False
        looked = time.monotonic()
        while not self._closed.wait(tick):
            now = time.monotonic()
            # time in which this whole process was stopped (Ctrl-Z, SIGSTOP) is not silence
            silent, looked = silent + min(now - looked, 2 * tick), now
            if self.world.heartbeat.last is not seen:
                seen, silent, told = self.world.heartbeat.last, 0.0, False
            if not told and silent >= DUMP_AFTER * self.timeout_s:
                told = True
                write_stderr(f"{self._describe(seen, silent)}; the stacks of its threads:", stacks=True)
            if silent >= self._limit():
                write_stderr(f"{self._describe(seen, silent)}; ends with exit status {EXIT_HUNG}")
                os._exit(EXIT_HUNG)
            faulthandler.dump_traceback_later(DUMP_AFTER * self.timeout_s, file=STDERR)

    def _limit(self) -> float:
        started = self.progress.step > self._first_step
        return KILL_AFTER * self.timeout_s * (1.0 if started else FIRST_STEP_FACTOR)

    def _describe(self, beat: Activity, silent: float) -> str:
        place = f"epoch {self.progress.epoch + 1}, batch {self.progress.batch + 1}, after step {self.progress.step}"
        who = f"rank {self.world.rank} on {socket.gethostname()} (process {os.getpid()})"
        return f"{who}: no progress for {silent:.0f} s, {beat.doing} ({place})"


def write_stderr(line: str, stacks: bool = False) -> None:
    """Print past Python's own buffers, whose locks a hung thread may hold; in one piece, as other ranks print too."""
    text = f"adadf_dist.train: {line}\n".encode()
    if stacks:
        try:
            with tempfile.TemporaryFile() as file:
                faulthandler.dump_traceback(file)
                file.seek(0)
                text += b"".join(b"    " + row for row in file)
        except OSError:  # no room for a temporary file: in pieces, then
            write(text)
            faulthandler.dump_traceback(STDERR)
            return
    write(text)


def write(text: bytes) -> None:
    """To standard error, if it still exists: a hung rank must end even where its terminal is gone."""
    with suppress(OSError):
        while text:
            text = text[os.write(STDERR, text) :]


@contextmanager
def run_watchdog(world: World, progress: TrainingProgress, timeout_s: float) -> Iterator[None]:
    """Watch this rank while the block runs."""
    world.heartbeat.beat("starting")
    watchdog = Watchdog(world, progress, timeout_s)
    try:
        yield
    finally:
        watchdog.close()
