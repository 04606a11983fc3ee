"""Worker processes: started from a clean server, ended with their parent, and probed before they are needed.

A fork of the training process would copy locks that its threads hold (DALI, gloo, CUDA, gRPC, Ray) and objects whose
destructors then wait forever. So workers are forked from a server process that has imported us and nothing else.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import warnings
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from adadf_dist.errors import UserError

warnings.filterwarnings("ignore", ".*found in sys.modules after import of package", RuntimeWarning)
"""Of runpy in workers: the server has imported the main module already, which is what it is for."""
SOCKET_PATH = 107
"""Bytes of a Unix socket's path on Linux."""
SOCKET_NAME = len("/pymp-01234567/listener-01234567")
"""What multiprocessing appends to the temporary folder."""
SEMAPHORES = 16
"""That the processes of a `ProcessPoolExecutor`, a counter and an event need at most, each a page of /dev/shm."""
F_SETSIG = 10
"""Of fcntl.h on Linux: which signal a file descriptor's owner gets."""


class WorkerProcess(ForkServerProcess):
    """A process with its parent's environment variables of now, which the server does not know: it started earlier."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._environment = dict(os.environ)

    def run(self) -> None:
        """Compute in the parent's environment."""
        os.environ.clear()
        os.environ.update(self._environment)
        super().run()

    def terminate(self) -> None:
        """End the process, also a stuck one: workers ignore SIGTERM, which their parent answers."""
        self.kill()


class WorkerContext(ForkServerContext):
    """A context whose processes are `WorkerProcess`es."""

    Process = WorkerProcess


def worker_context(module: str) -> ForkServerContext:
    """The context in which worker processes start. Raises `UserError` where none can start.

    The server imports `module`, where the workers' code is, and the main module, which every worker would otherwise
    import for itself.
    """
    check_socket_path()
    context = WorkerContext()
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    context.set_forkserver_preload([module] if spec is None else [module, spec.name])
    return context


def check_socket_path() -> None:
    """Raises `UserError` when the temporary folder is too long for a Unix socket."""
    folder = tempfile.gettempdir()
    length = len(os.fsencode(folder)) + SOCKET_NAME
    if length > SOCKET_PATH:
        raise UserError(
            f"TMPDIR: {folder} is {length - SOCKET_PATH} bytes too long for the sockets of worker processes; "
            "set TMPDIR to a shorter path, such as /tmp"
        )


def check_semaphores(context: ForkServerContext) -> None:
    """Raises `UserError` where this machine cannot hold the semaphores of a `ProcessPoolExecutor`."""
    folder = Path("/dev/shm")
    try:
        semaphores = [context.Lock() for _ in range(SEMAPHORES)]
    except OSError as error:
        found = "there is none"
        if folder.is_dir():
            found = f"{shutil.disk_usage(folder).free // 1024} KB are free"
        raise UserError(
            f"{folder}: cannot hold the semaphores of worker processes ({error.strerror}): {found}, and "
            f"{SEMAPHORES * resource.getpagesize() // 1024} KB are needed; make it larger and writable "
            "(docker run --shm-size 64m), or use 1 worker"
        ) from None
    del semaphores


def end_with_parent() -> None:
    """Have this worker killed when its parent ends, even while it holds the interpreter lock.

    The parent's end closes a pipe; the kernel answers that with SIGKILL, and a thread watches the pipe where the kernel
    does not.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(parent.sentinel, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, fcntl.fcntl(parent.sentinel, fcntl.F_GETFL) | os.O_ASYNC)
    # the parent may be gone already: the kernel signals a change only
    threading.Thread(target=_exit_after_parent, name="parent watch", daemon=True).start()


def _exit_after_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
