"""Worker pools return results in order, and no dead or failing worker blocks the rank."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from adadf_dist.data.datamodule import open_data
from adadf_dist.data.workers.pass_pool import WorkerPool
from adadf_dist.data.workers.process import DeadWorkerError
from adadf_dist.distributed.stop_signals import handle_stop_signals
from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError
from tests.data.loaders.test_loaders import config_for
from tests.helpers.waiting import wait_until
from tests.helpers.worker_tasks import Task

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def pool() -> Iterator[WorkerPool[int, Any]]:
    """Two workers, one result ahead."""
    opened: WorkerPool[int, Any] = WorkerPool(0, 2, 1, "adadf_dist.data.loaders.torch_loader")
    yield opened
    opened.close()


def count(pool: WorkerPool[int, Any], start: int) -> list[Any]:
    return list(pool.run([Task("count", start), Task("count", start + 1000)]))[2:]


def interleaved(start: int) -> list[int]:
    return [start + 1000 * worker + number for number in range(100) for worker in range(2)]


def test_abandoned_pass_leaves_no_results_for_the_next(pool: WorkerPool[int, Any]) -> None:
    for start in range(0, 50, 5):
        left = pool.run([Task("count", start), Task("count", start)])
        for _ in range(start):
            next(left)
        assert count(pool, start) == interleaved(start)


def test_worker_killed_while_sending_a_result(pool: WorkerPool[int, Any]) -> None:
    """4 MB fill every pipe, so the worker is killed while it is blocked in sending."""
    results = pool.run([Task("large results"), Task("large results")])
    victim = psutil.Process(next(results))
    next(results)
    wait_until(lambda: victim.status() == psutil.STATUS_SLEEPING, "the worker still computes")
    victim.kill()
    with pytest.raises(DeadWorkerError, match=rf"data worker 0 \(process {victim.pid}\) was killed by SIGKILL"):
        list(results)


def test_worker_killed_between_passes(pool: WorkerPool[int, Any]) -> None:
    victim = psutil.Process(list(pool.run([Task("count"), Task("count")]))[1])
    victim.kill()
    with pytest.raises(DeadWorkerError, match=r"data worker 1 .*SIGKILL"):
        count(pool, 0)


@pytest.mark.parametrize(
    ("what", "error", "text"),
    [
        ("unpicklable", RuntimeError, r"in data worker 0:[\s\S]*pickle"),
        ("bug", RuntimeError, r"in data worker 0:[\s\S]*KeyError: 'a bug'"),
        ("memory", MemoryError, "in data worker 0"),
    ],
)
def test_failing_task_raises_its_error(
    pool: WorkerPool[int, Any], what: str, error: type[Exception], text: str
) -> None:
    """Also for a result that cannot be pickled; the pool stays usable."""
    with pytest.raises(error, match=text):
        list(pool.run([Task(what), Task("count")]))
    assert count(pool, 0) == interleaved(0)


def test_exiting_worker_is_an_error(pool: WorkerPool[int, Any]) -> None:
    with pytest.raises(DeadWorkerError, match="ended with exit status 3"):
        list(pool.run([Task("exit"), Task("count")]))


def test_unreadable_result_ends_its_worker(pool: WorkerPool[int, Any]) -> None:
    """Its worker is terminated: results left in its pipe are never taken for those of a later pass."""
    with pytest.raises(ValueError, match="not a number"):
        list(pool.run([Task("unreadable"), Task("count")]))
    with pytest.raises(DeadWorkerError):
        count(pool, 0)


def test_closing_ends_a_worker_that_holds_the_interpreter_lock(pool: WorkerPool[int, Any]) -> None:
    results = pool.run([Task("hold the lock"), Task("count")])
    stuck = psutil.Process(next(results))
    pool.close()
    wait_until(lambda: not stuck.is_running() or stuck.status() == psutil.STATUS_ZOMBIE, "it still runs")


def test_loader_reports_a_killed_worker_in_one_line(faces: Path) -> None:
    config = config_for(
        faces, data__loader="torch", data__num_workers=2, data__prefetch_batches=1, data__image_size=224
    )
    with open_data(config, 0, 1, torch.device("cpu")) as data:
        batches = iter(data.train_batches(0))
        next(batches)
        for server in psutil.Process().children():
            for worker in server.children():
                worker.kill()
        with pytest.raises(UserError, match=r"killed by SIGKILL.*lower data\.num_workers \(now 2\)") as caught:
            list(batches)
    assert "\n" not in str(caught.value)


def test_stop_signal_is_handled_while_waiting_for_a_batch(pool: WorkerPool[int, Any]) -> None:
    """The worker continues only after the waiting rank has handled the signal."""
    world = World(torch.device("cpu"))
    results = pool.run([Task("count"), Task("count")])
    worker = psutil.Process(next(results))

    def ask_to_stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(world.should_stop, "the signal was not handled")
        worker.resume()

    worker.suspend()
    asker = threading.Thread(target=ask_to_stop)
    with handle_stop_signals(world.request_stop):
        asker.start()
        assert len(list(results)) == 201
        asker.join()
    assert world.should_stop()
