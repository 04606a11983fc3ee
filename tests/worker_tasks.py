"""What the workers of tests do. Worker processes import this module, so it imports little."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection

from adadf_dist.data.processes import end_with_parent


def hold_the_lock(pipe: Connection) -> None:
    """A worker that is stuck in native code with the interpreter lock and ignores SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent()
    pipe.send(os.getpid())
    ctypes.PyDLL(None).pause()


class Unreadable:
    """Can be pickled, but not unpickled."""

    def __reduce__(self) -> tuple[type[int], tuple[str]]:
        return int, ("not a number",)


@dataclass
class Task:
    what: str
    argument: int = 0

    def __call__(self, state: int) -> Iterator[object]:
        """`state` is the worker's copy of the pool's."""
        yield os.getpid()
        if self.what == "count":
            yield from range(self.argument, self.argument + 100)
        elif self.what == "large results":
            for _ in range(100):
                yield bytes(2**22)
        elif self.what == "unpicklable":
            yield lambda: None
        elif self.what == "unreadable":
            yield Unreadable()
        elif self.what == "bug":
            raise KeyError("a bug")
        elif self.what == "memory":
            raise MemoryError
        elif self.what == "exit":
            os._exit(3)
        elif self.what == "hold the lock":
            ctypes.PyDLL(None).pause()


def send_environment(pipe: Connection) -> None:
    """Send the environment variables that this process has."""
    pipe.send(dict(os.environ))
