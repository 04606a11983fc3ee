"""Tasks for worker processes, which import this module, so it imports little."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from adadf_dist.data.workers.process import end_with_parent, leave_signals_to_parent


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


def echo(pipe: Connection) -> None:
    """Return every message, as a worker that ignores stop signals."""
    leave_signals_to_parent()
    with suppress(EOFError):
        while True:
            pipe.send(pipe.recv())


LARGE = 2**26
"""Bytes of a result that no pipe holds."""


class Fatal:
    """Kills the worker that unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return kill_worker, ()


class LocalError(Exception):
    """Can be pickled, but not unpickled."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def kill_worker() -> None:
    if multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)


def wait_for(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, path
        time.sleep(0.01)


def note_process(path: Path) -> None:
    """Write this process's id; the file appears only when it is complete."""
    unfinished = path.with_suffix(".state")
    unfinished.write_text(str(os.getpid()))
    unfinished.rename(path)


def do_step(folder: Path, step: str | Fatal, on_sample: Callable[[], object]) -> object:
    """A task of the worker pool's tests: `step` is the name of a function below, or a number of samples."""
    if isinstance(step, str) and not step.isdigit():
        return globals()[step](folder, on_sample)
    for _ in range(int(str(step))):
        on_sample()
    return step


def die_at_work(folder: Path, on_sample: Callable[[], object]) -> None:
    wait_for(folder / "stuck")
    on_sample()
    kill_worker()


def die_in_mid_result(folder: Path, on_sample: Callable[[], object]) -> bytes:
    """Return a large result; the process is killed when half of it is sent."""
    wait_for(folder / "stuck")
    send = Connection._send  # type: ignore[attr-defined]

    def send_half(pipe: Connection, data: memoryview) -> None:
        send(pipe, data[: LARGE // 2])
        if len(data) > LARGE:  # not the header
            kill_worker()

    Connection._send = send_half  # type: ignore[attr-defined]
    return bytes(LARGE)


def die_in_next_task(folder: Path, on_sample: Callable[[], object]) -> None:
    """The process is killed when it has received the header of a large task."""
    receive = Connection._recv  # type: ignore[attr-defined]

    def receive_header(pipe: Connection, size: int) -> object:
        if size > 2**20:
            kill_worker()
        return receive(pipe, size)

    Connection._recv = receive_header  # type: ignore[attr-defined]


def be_stuck(folder: Path, on_sample: Callable[[], object]) -> None:
    note_process(folder / "stuck")
    time.sleep(1000)


def fail(folder: Path, on_sample: Callable[[], object]) -> None:
    wait_for(folder / "counting")
    raise KeyError("a bug")


def count_without_end(folder: Path, on_sample: Callable[[], object]) -> None:
    """Treats every error as one of the image, as a decoder does."""
    (folder / "counting").touch()
    try:
        while True:
            with suppress(Exception):
                on_sample()
    finally:
        (folder / "stopped").touch()


def count_until_reported(folder: Path, on_sample: Callable[[], object]) -> None:
    while not (folder / "reported").exists():
        on_sample()


def send_a_large_result(folder: Path, on_sample: Callable[[], object]) -> bytes:
    note_process(folder / "sender")
    return bytes(LARGE)


def raise_local_error(folder: Path, on_sample: Callable[[], object]) -> None:
    raise LocalError("a local", " error")


def exit_early(folder: Path, on_sample: Callable[[], object]) -> None:
    sys.exit("a system exit")


def end_process(folder: Path, on_sample: Callable[[], object]) -> None:
    os._exit(3)


def return_a_function(folder: Path, on_sample: Callable[[], object]) -> object:
    return lambda: None


def return_unreadable(folder: Path, on_sample: Callable[[], object]) -> object:
    return Unreadable()


def survive_signals(folder: Path, on_sample: Callable[[], object]) -> str:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(os.getpid(), number)
    return "survived"
