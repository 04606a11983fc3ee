"""Worker processes that share a pass, each with a pipe of its own.

Only the worker holds the far end of its pipe, so its death ends the pipe at once, also in the middle of a result. A
queue that workers share (torch's `DataLoader`, `concurrent.futures`) stays open then, and its reader waits forever.
"""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from adadf_dist.data.ahead import Ahead
from adadf_dist.data.processes import end_with_parent, worker_context
from adadf_dist.errors import UserError

S = TypeVar("S")
R = TypeVar("R")


class DeadWorkerError(UserError):
    """A worker process was killed, perhaps for memory."""


class PassEnd(NamedTuple):
    """What a worker sends after a pass's last result."""

    failure: str = ""
    """The traceback of what ended the pass early; empty where nothing did."""
    out_of_memory: bool = False


class WorkerPool(Generic[S, R]):
    """Processes that hold a copy of `state` and compute passes over it until the pool is closed.

    A pass is one task per worker, a picklable function from the state to an iterator of results.
    """

    def __init__(self, state: S, workers: int, ahead: int, module: str) -> None:
        """The workers start at the first pass; each has `ahead` results ready. Raises `UserError` where none can start.

        `module` is where the tasks' code is.
        """
        self._context = worker_context(module)
        self._state = state
        self._workers = workers
        self._ahead = ahead
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        self._streams: list[Ahead[R]] = []

    def _start(self) -> None:
        for number in range(self._workers):
            pipe, far_end = self._context.Pipe()
            name = f"data worker {number}"
            process = self._context.Process(target=serve, args=(far_end, self._state), name=name, daemon=True)
            process.start()
            far_end.close()
            self._processes.append(process)
            self._pipes.append(pipe)

    def run(self, tasks: Sequence[Callable[[S], Iterator[R]]]) -> Iterator[R]:
        """The results, one from each worker in turn, up to the first worker that has no more.

        Raises `DeadWorkerError` for a killed worker, and `RuntimeError` or `MemoryError` for a failed task.
        """
        self.stop()
        if not self._processes:
            self._start()
        for number, task in enumerate(tasks):
            if not self._processes[number].is_alive():  # its pipe may still hold the end of an earlier pass
                raise self._describe_death(number)
            try:
                self._pipes[number].send(task)
            except OSError:
                raise self._describe_death(number) from None
        self._streams = [Ahead(self._receive(number), self._ahead) for number in range(len(tasks))]
        turns = [iter(stream) for stream in self._streams]
        while True:
            for turn in turns:
                try:
                    result = next(turn)
                except StopIteration:
                    return
                yield result

    def stop(self) -> None:
        """End a pass that was left early. Waits for the result that each worker is computing."""
        for pipe in self._pipes if self._streams else ():
            try:
                pipe.send(None)
            except OSError:
                continue  # a dead worker has stopped
        for stream in self._streams:
            stream.close()
        self._streams = []

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        self.stop()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []

    def _receive(self, number: int) -> Iterator[R]:
        """A worker's results up to the end of the pass. Runs in a thread."""
        message: Any = None
        try:
            while not isinstance(message := self._next_message(number), PassEnd):
                yield message
            if message.failure:
                kind = MemoryError if message.out_of_memory else RuntimeError
                raise kind(f"in data worker {number}:\n{message.failure}")
        except GeneratorExit:  # the pass was left early: the pipe must be empty when the next one begins
            while not isinstance(message, (PassEnd, DeadWorkerError)):
                try:
                    message = self._next_message(number)
                except DeadWorkerError as error:
                    message = error
            raise

    def _next_message(self, number: int) -> Any:
        try:
            return self._pipes[number].recv()
        except (EOFError, OSError):
            raise self._describe_death(number) from None
        except BaseException:  # a result that cannot be unpickled, no memory for it: the pipe is out of step
            self._processes[number].kill()
            self._processes[number].join()
            raise

    def _describe_death(self, number: int) -> DeadWorkerError:
        process = self._processes[number]
        process.join(1)
        code = process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        return DeadWorkerError(f"data worker {number} (process {process.pid}) {how}")


def serve(pipe: Connection, state: S) -> None:
    """Compute passes for the rank at the other end of the pipe. Runs in a worker."""
    settle_worker()
    while True:
        task = pipe.recv()
        if task is not None:  # None: a request to stop the pass that had just ended
            pipe.send(compute(pipe, task, state))


def compute(pipe: Connection, task: Callable[[S], Iterator[R]], state: S) -> PassEnd:
    """Send a pass's results until the rank asks to stop. Returns how the pass ended."""
    try:
        for result in task(state):
            pipe.send(result)  # pickles in this thread, so a result that cannot be pickled is an error of the task
            if pipe.poll():
                pipe.recv()
                break
    except Exception as error:
        return PassEnd(traceback.format_exc(), isinstance(error, MemoryError))
    return PassEnd()


def settle_worker() -> None:
    """Compute on one thread and leave stop signals to the rank: a worker ends when its rank does."""
    end_with_parent()
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
