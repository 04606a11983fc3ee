"""Pool of worker processes that share a pass over the data. Each has its own pipe (see `start_worker`)."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from adadf_dist.data.loaders.prefetch import BackgroundPrefetcher
from adadf_dist.data.workers.process import (
    DeadWorkerError,
    Worker,
    leave_signals_to_parent,
    start_worker,
    worker_context,
)

S = TypeVar("S")
R = TypeVar("R")


class PassEnd(NamedTuple):
    """Message that a worker sends after the last result of a pass."""

    failure: str = ""
    """Traceback of the error that ended the pass; empty if it ended without one."""
    out_of_memory: bool = False


class WorkerPool(Generic[S, R]):
    """Worker processes that each hold a copy of `state` and run passes until the pool is closed.

    In a pass, each worker runs one task: a picklable function that takes the state and returns an iterator of results.
    """

    def __init__(self, state: S, workers: int, ahead: int, module: str) -> None:
        """Prepare the pool. Workers start with the first pass, and each keeps `ahead` results ready.

        `module` is the name of the module that contains the tasks' code.
        """
        self._context = worker_context(module)
        self._state = state
        self._count = workers
        self._ahead = ahead
        self._workers: list[Worker] = []
        self._streams: list[BackgroundPrefetcher[R]] = []

    def _start(self) -> None:
        for number in range(self._count):
            self._workers.append(start_worker(self._context, serve, (self._state,), f"data worker {number}"))

    def run(self, tasks: Sequence[Callable[[S], Iterator[R]]]) -> Iterator[R]:
        """Yield results, one from each worker in turn, until it is the turn of a worker that has no more.

        Raises `DeadWorkerError` if a worker was killed, and `RuntimeError` or `MemoryError` if a task failed.
        """
        self.stop()
        if not self._workers:
            self._start()
        for worker, task in zip(self._workers, tasks, strict=True):
            if not worker.process.is_alive():  # its pipe may still contain the end of an earlier pass
                raise worker.describe_death()
            worker.send(ForkingPickler.dumps(task))
        self._streams = [BackgroundPrefetcher(receive(worker), self._ahead) for worker in self._workers]
        turns = [iter(stream) for stream in self._streams]
        while True:
            for turn in turns:
                try:
                    result = next(turn)
                except StopIteration:
                    return
                yield result

    def stop(self) -> None:
        """Stop an unfinished pass. Waits for the result that each worker is computing."""
        for worker in self._workers if self._streams else ():
            try:
                worker.pipe.send(None)
            except OSError:
                continue  # a dead worker has stopped
        for stream in self._streams:
            stream.close()
        self._streams = []

    def close(self) -> None:
        """Kill the workers, whatever they are doing."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
        self.stop()
        for worker in self._workers:
            worker.pipe.close()
        self._workers = []


def receive(worker: Worker) -> Iterator[Any]:
    """Yield a worker's results until the pass ends. Runs in a thread."""
    message: Any = None
    try:
        while not isinstance(message := receive_message(worker), PassEnd):
            yield message
        if message.failure:
            kind = MemoryError if message.out_of_memory else RuntimeError
            raise kind(f"in {worker.process.name}:\n{message.failure}")
    except GeneratorExit:  # pass abandoned early: the pipe must be empty when the next one starts
        while not isinstance(message, (PassEnd, DeadWorkerError)):
            try:
                message = receive_message(worker)
            except DeadWorkerError as error:
                message = error
        raise


def receive_message(worker: Worker) -> Any:
    """Receive a message. Kills the worker if the message is unreadable, because its pipe is then out of sync."""
    try:
        return pickle.loads(worker.receive())
    except DeadWorkerError:
        raise
    except BaseException:  # it cannot be unpickled, or memory is exhausted
        worker.process.kill()
        worker.process.join()
        raise


def serve(pipe: Connection, state: S) -> None:
    """Run passes for the rank at the other end of the pipe. Runs in a worker."""
    leave_signals_to_parent()  # a worker exits with its rank
    torch.set_num_threads(1)
    while True:
        task = pipe.recv()
        if task is not None:  # None: a request to stop the pass that had just ended
            pipe.send(compute(pipe, task, state))


def compute(pipe: Connection, task: Callable[[S], Iterator[R]], state: S) -> PassEnd:
    """Run one pass: send the task's results until it ends or the rank asks to stop. Return how the pass ended."""
    try:
        for result in task(state):
            pipe.send(result)  # pickles in this thread, so a result that cannot be pickled is an error of the task
            if pipe.poll():
                pipe.recv()
                break
    except Exception as error:
        return PassEnd(traceback.format_exc(), isinstance(error, MemoryError))
    return PassEnd()
