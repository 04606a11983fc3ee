"""Tasks for several processes, results in the order of the tasks."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from typing import Any, NamedTuple, TypeAlias, TypeVar

from adadf_dist.data.processes import check_semaphores, end_with_parent, worker_context
from adadf_dist.errors import UserError

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

Work: TypeAlias = Callable[[S, T, Callable[[], object]], R]
"""work(shared, task, on_sample) -> result"""

_LOOK_S = 0.2  # seconds between two looks at the shared counter


class _Orders(NamedTuple):
    """What a worker process needs for every task: sent once, not with each."""

    work: Work[Any, Any, Any]
    shared: Any
    done: Synchronized[int]
    stop: Event


class _StopError(Exception):
    """Ends the task in hand of a worker whose siblings failed or whose user pressed Ctrl-C."""


_orders: _Orders


def run_tasks(
    work: Work[S, T, R], shared: S, tasks: Sequence[T], workers: int, on_samples: Callable[[int], object]
) -> list[R]:
    """Run `work(shared, task, on_sample)` for every task, in this process when one worker is enough.

    `on_samples(n)` is called here, as the workers call `on_sample()`. Raises `UserError` when a worker is killed,
    and whatever `work` raises; the other workers then stop at their next `on_sample()`.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        return [work(shared, task, lambda: on_samples(1)) for task in tasks]
    context = worker_context(__name__)
    check_semaphores(context)
    orders = _Orders(work, shared, context.Value("q", 0), context.Event())
    with ProcessPoolExecutor(workers, context, _enlist, orders) as pool:
        futures = [pool.submit(_work, task) for task in tasks]
        try:
            told, pending = 0, set(futures)
            while pending:
                finished, pending = wait(pending, _LOOK_S, FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                count = orders.done.value
                on_samples(count - told)
                told = count
            return [future.result() for future in futures]
        except BrokenProcessPool:
            raise UserError("a worker process was killed, perhaps for memory; try again with fewer --workers") from None
        finally:
            orders.stop.set()
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Processes:
    """A crew of processes on this machine."""

    workers: int

    def run(self, work: Work[S, T, R], shared: S, tasks: Sequence[T], on_samples: Callable[[int], object]) -> list[R]:
        """As `run_tasks`."""
        return run_tasks(work, shared, tasks, self.workers, on_samples)


def _enlist(*orders: Any) -> None:
    global _orders
    _orders = _Orders(*orders)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us all; the parent alone answers it
    end_with_parent()  # a worker must not keep writing where the next build may already be


def _work(task: T) -> Any:
    def on_sample() -> None:
        with _orders.done.get_lock():
            _orders.done.value += 1
        if _orders.stop.is_set():
            raise _StopError

    return _orders.work(_orders.shared, task, on_sample)
