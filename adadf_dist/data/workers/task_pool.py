"""Runs tasks in several processes and returns their results in task order.

Each worker has its own pipe, so a killed worker closes its pipe at once, even in the middle of a result. The parent
closes its ends of the pipes to stop the workers.
"""

from __future__ import annotations

import pickle
import select
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple, TypeAlias, TypeVar

from adadf_dist.data.workers.process import (
    DeadWorkerError,
    Worker,
    leave_signals_to_parent,
    start_worker,
    worker_context,
)

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

Work: TypeAlias = Callable[[S, T, Callable[[], object]], R]
"""Function work(shared, task, on_sample) -> result, which calls on_sample() after each sample."""

REPORT_S = 0.1
"""Minimum time in seconds between two progress reports from a worker."""


class Report(NamedTuple):
    """Message that a worker sends during a task, at its end, or on failure."""

    samples: int
    """Samples finished since the previous report."""
    finished: bool = False
    result: Any = None
    error: BaseException | None = None


class StopError(BaseException):
    """Raised to end a worker's task after the parent closed the pipe; `except Exception` does not catch it."""


def map_tasks(
    work: Work[S, T, R], shared: S, tasks: Sequence[T], workers: int, on_samples: Callable[[int], object]
) -> list[R]:
    """Run `work(shared, task, on_sample)` for every task, in worker processes unless one worker suffices.

    `on_samples(n)` is called in this process each time the workers have finished n more samples. Raises whatever `work`
    raises; the other workers then stop at their next `on_sample()`. If a worker is killed, kills the others and raises
    `UserError`.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        return [work(shared, task, lambda: on_samples(1)) for task in tasks]
    job = ForkingPickler.dumps((work, shared))
    try:
        with start_workers(workers) as pool:
            for worker in pool:
                worker.send(job)
            return distribute_tasks(pool, tasks, on_samples)
    except DeadWorkerError as error:
        raise DeadWorkerError(f"{error}; if it ran out of memory, lower --num-workers (now {workers})") from None


@dataclass(frozen=True)
class ProcessPool:
    """Runs tasks in worker processes on this machine."""

    workers: int

    def run(self, work: Work[S, T, R], shared: S, tasks: Sequence[T], on_samples: Callable[[int], object]) -> list[R]:
        """Run `work` for every task and return the results in task order (see `map_tasks`)."""
        return map_tasks(work, shared, tasks, self.workers, on_samples)


@contextmanager
def start_workers(count: int) -> Iterator[list[Worker]]:
    """Start `count` workers; at the end of the `with` block, stop them and wait for them to exit.

    A second Ctrl-C, while they are finishing their current samples, kills them.
    """
    context = worker_context(__name__)
    pool: list[Worker] = []
    try:
        for number in range(count):
            pool.append(start_worker(context, run_worker, (), f"worker {number}"))
        yield pool
    except DeadWorkerError:
        for worker in pool:
            worker.process.kill()
        raise
    finally:
        try:
            for worker in pool:
                worker.pipe.close()
            for worker in pool:
                worker.process.join()
        finally:
            for worker in pool:
                worker.process.kill()
            for worker in pool:
                worker.process.join()


def distribute_tasks(pool: Sequence[Worker], tasks: Sequence[Any], on_samples: Callable[[int], object]) -> list[Any]:
    """Give each worker a new task as soon as it finishes one. Returns the results in task order."""
    results: dict[int, Any] = {}
    waiting = iter(range(len(tasks)))
    busy: dict[Connection, tuple[Worker, int]] = {}

    def assign(worker: Worker) -> None:
        number = next(waiting, None)
        if number is not None:
            worker.send(ForkingPickler.dumps(tasks[number]))
            busy[worker.pipe] = worker, number

    for worker in pool:
        assign(worker)
    while busy:
        for pipe in wait(list(busy)):
            assert isinstance(pipe, Connection)
            worker, number = busy[pipe]
            report: Report = pickle.loads(worker.receive())
            if report.samples:
                on_samples(report.samples)
            if report.error is not None:
                raise report.error
            if report.finished:
                del busy[pipe]
                results[number] = report.result
                assign(worker)
    return [results[number] for number in range(len(tasks))]


def run_worker(pipe: Connection) -> None:
    """Receive and run tasks until the parent closes its end of the pipe. Runs in a worker."""
    leave_signals_to_parent()
    try:
        runner = TaskRunner(pipe, pipe.recv_bytes())
        while True:
            pipe.send_bytes(runner.run(pipe.recv_bytes()))
    except (EOFError, OSError, StopError):  # the pipe is closed: `runner.run` reports errors of the task
        return


class TaskRunner:
    """Runs a worker's tasks and reports to the parent how many samples are finished."""

    def __init__(self, pipe: Connection, job: bytes) -> None:
        """Create a runner; `job` contains the pickled function and the state that all tasks share."""
        self._pipe = pipe
        self._job = job
        self._function: Callable[[Any, Callable[[], object]], Any] | None = None
        self._poll = select.poll()
        self._poll.register(pipe, select.POLLIN)
        self._samples = 0
        self._next_report = time.monotonic() + REPORT_S

    def run(self, task: bytes) -> memoryview:
        """Run a pickled task and return its pickled final report. Raises `StopError` if the pipe is closed."""
        try:
            if self._function is None:
                work, shared = pickle.loads(self._job)
                self._job = b""
                self._function = lambda task, on_sample: work(shared, task, on_sample)
            result = self._function(pickle.loads(task), self.on_sample_done)
            return ForkingPickler.dumps(Report(self._samples, finished=True, result=result))
        except StopError:
            raise
        except BaseException as error:
            return ForkingPickler.dumps(Report(self._samples, error=make_picklable(error)))
        finally:
            self._samples = 0

    def on_sample_done(self) -> None:
        """Count a finished sample, and send a report if due. Raises `StopError` if the parent closed the pipe."""
        self._samples += 1
        if self._poll.poll(0):  # the parent sends nothing during a task: readable means closed
            raise StopError
        if time.monotonic() >= self._next_report:
            try:
                self._pipe.send(Report(self._samples))
            except OSError:
                raise StopError from None
            self._samples = 0
            self._next_report = time.monotonic() + REPORT_S


def make_picklable(error: BaseException) -> BaseException:
    """Return the error with the worker's traceback as a note, or a `RuntimeError` if the error cannot be pickled."""
    text = "In a worker process:\n" + "".join(traceback.format_exception(error))
    error.add_note(text)
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(text)
    return error
