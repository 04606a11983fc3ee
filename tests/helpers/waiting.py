"""Wait for processes on a machine under any load: a limit in seconds counts only while they are idle."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil

IDLE = 0.03
"""Share of a core below which processes are not computing. A crowded machine still gives them more."""


class IdleLimit:
    """Expires after `seconds` in which processes and their descendants were idle."""

    def __init__(self, seconds: float, processes: Sequence[int] | None = None) -> None:
        """`processes`: their IDs; by default all that this process has started."""
        self.seconds = seconds
        self._processes = processes
        self._since, self._cpu = time.monotonic(), self._cpu_seconds()

    def check(self, message: str) -> None:
        """Raise `AssertionError` with the message if the time has expired."""
        assert not self.is_over(), f"idle for {self.seconds:g} s: {message}"

    def is_over(self) -> bool:
        """Whether the processes have been idle for `seconds`."""
        now, cpu = time.monotonic(), self._cpu_seconds()
        if cpu - self._cpu > IDLE * self.seconds:
            self._since, self._cpu = now, cpu
        return now - self._since >= self.seconds

    def _cpu_seconds(self) -> float:
        """Including ended children, which their parent has counted."""
        total = 0.0
        for process in self._alive():
            try:
                total += sum(process.cpu_times()[:4])
            except psutil.Error:
                continue
        return total

    def _alive(self) -> list[psutil.Process]:
        if self._processes is None:
            return psutil.Process().children(recursive=True)
        alive = []
        for number in self._processes:
            try:
                process = psutil.Process(number)
                alive += [process, *process.children(recursive=True)]
            except psutil.Error:
                continue
        return alive


def communicate(process: subprocess.Popen[Any], seconds: float = 60, until: float = 1) -> tuple[Any, Any]:
    """Output of a process until its end. Raises `AssertionError` if it is idle for `seconds`."""
    limit = IdleLimit(seconds, [process.pid])
    while True:
        try:
            return process.communicate(timeout=until)
        except subprocess.TimeoutExpired:
            limit.check(f"process {process.pid} has not ended")


def wait_until(found: Callable[[], object], what: str = "in vain", seconds: float = 60) -> None:
    """Wait for an effect of our processes. Raises `AssertionError` if they are idle for `seconds`."""
    limit = IdleLimit(seconds)
    while not found():
        limit.check(what)
        time.sleep(0.05)
