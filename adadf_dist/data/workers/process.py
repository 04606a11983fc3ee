"""Worker processes, which are forked from a clean server process and killed when their parent exits.

A fork of the training process would copy locks that its threads hold (DALI, gloo, CUDA, gRPC, Ray) and objects whose
destructors then wait forever. So workers are forked from a server process that has imported only this package.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from multiprocessing import popen_forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

from adadf_dist.errors import UserError, single_line

warnings.filterwarnings("ignore", ".*found in sys.modules after import of package", RuntimeWarning)
"""Issued by runpy in workers because the server has already imported the main module, which is intended."""
SOCKET_PATH = 107
"""Maximum length in bytes of a Unix socket path on Linux."""
SOCKET_NAME = len("/pymp-01234567/listener-01234567")
"""Length of the socket path that multiprocessing appends to the temporary folder."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that request a stop. Only the parent process handles them, not its workers or the forkserver."""
F_SETSIG = 10
"""Command from Linux's fcntl.h that sets which signal a file descriptor's owner receives."""


class WorkerHandle(popen_forkserver.Popen):
    """Process handle whose `terminate()` sends SIGKILL instead of SIGTERM."""

    def terminate(self) -> None:
        """Kill the process, even if it is stuck. Workers ignore SIGTERM, because their parent handles it.

        The interpreter calls this method at exit and then waits for the process.
        """
        self.kill()


class WorkerProcess(ForkServerProcess):
    """A process with its parent's current environment variables, rather than those the forkserver started with."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._environment = dict(os.environ)

    def start(self) -> None:
        """Start the process, and the forkserver if it is not running, with stop signals blocked in both.

        Launchers and terminals send stop signals to the whole process group. If the server died from one, its workers
        would count as dead, and the run would fail instead of stopping. The resource tracker starts first because
        starting it unblocks the signals in this thread.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def run(self) -> None:
        """Set the parent's environment variables and run the process."""
        os.environ.clear()
        os.environ.update(self._environment)
        super().run()

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> WorkerHandle:  # noqa: N802  (multiprocessing calls it)
        return WorkerHandle(process_obj)


class WorkerContext(ForkServerContext):
    """A multiprocessing context whose processes are of type `WorkerProcess`."""

    Process = WorkerProcess


def worker_context(module: str) -> ForkServerContext:
    """Return the context for starting worker processes. Raises `UserError` if none can start.

    The server imports `module`, which contains the workers' code, and the main module, which every worker would
    otherwise import itself.
    """
    check_socket_path()
    context = WorkerContext()
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    context.set_forkserver_preload([module] if spec is None else [module, spec.name])
    return context


def check_socket_path() -> None:
    """Raise `UserError` if the temporary folder's path is too long for a Unix socket."""
    folder = tempfile.gettempdir()
    length = len(os.fsencode(folder)) + SOCKET_NAME
    if length > SOCKET_PATH:
        raise UserError(
            f"TMPDIR: {folder} is {length - SOCKET_PATH} bytes too long for the sockets of worker processes",
            "set TMPDIR to a shorter path such as /tmp",
        )


class DeadWorkerError(UserError):
    """Raised when a worker process was killed (most likely out of memory) or could not start."""


class Worker(NamedTuple):
    """A worker process and the parent's end of its pipe."""

    process: BaseProcess
    pipe: Connection

    def send(self, message: bytes | memoryview) -> None:
        """Send bytes to the worker. Raises `DeadWorkerError` if it has died."""
        try:
            self.pipe.send_bytes(message)
        except OSError:
            raise self.describe_death() from None

    def receive(self) -> bytes:
        """Receive bytes from the worker. Raises `DeadWorkerError` if it has died, even in the middle of a message."""
        try:
            return self.pipe.recv_bytes()
        except (EOFError, OSError):
            raise self.describe_death() from None

    def describe_death(self) -> DeadWorkerError:
        """Return an error that states which worker died and how."""
        self.process.join(1)
        code = self.process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        return DeadWorkerError(f"{self.process.name} (process {self.process.pid}) {how}")


def start_worker(
    context: ForkServerContext, target: Callable[..., object], arguments: tuple[object, ...], name: str
) -> Worker:
    """Start a process that runs `target(pipe, *arguments)`. Raises `DeadWorkerError` if it cannot start.

    Only the worker holds the far end of its pipe, so its death closes the pipe at once, even in the middle of a
    message. A queue shared by workers (as in torch's `DataLoader` and `concurrent.futures`) would stay open, and its
    reader would wait forever.
    """
    try:
        pipe, far_end = context.Pipe()
        with far_end:
            process = context.Process(target=target, args=(far_end, *arguments), name=name, daemon=True)
            process.start()
    except (EOFError, OSError) as error:
        raise DeadWorkerError(f"{name} cannot start ({single_line(error)})") from None
    return Worker(process, pipe)


def leave_signals_to_parent() -> None:
    """Make this worker ignore stop signals, and exit when its parent exits."""
    end_with_parent()
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_with_parent() -> None:
    """Arrange for this worker to be killed when its parent exits, even while it holds the interpreter lock.

    The parent's exit closes a pipe, and the kernel then sends SIGKILL to this worker. A thread also watches the pipe,
    in case the kernel sends no signal.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(parent.sentinel, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, fcntl.fcntl(parent.sentinel, fcntl.F_GETFL) | os.O_ASYNC)
    # the parent may already be gone: the kernel only signals a change
    threading.Thread(target=_exit_after_parent, name="parent watch", daemon=True).start()


def _exit_after_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
