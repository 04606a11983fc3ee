"""Runs the dataset builder's tasks on a Ray cluster.

The source data and the output folder must have the same paths on all nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from adadf_dist.errors import UserError, install_or_repair, single_line

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class RayPool:
    """A worker pool that runs one Ray task per shard; if a node dies, Ray retries its tasks."""

    address: str
    """Address of the Ray cluster. `auto` connects to the cluster running on this machine; `local` starts a new one."""

    def run(
        self,
        work: Callable[[S, T, Callable[[], object]], R],
        shared: S,
        tasks: Sequence[T],
        on_samples: Callable[[int], object],
    ) -> list[R]:
        """Run `work(shared, task, on_sample)` for every task and return the results in task order.

        Raises `UserError` if no cluster is found; exceptions from `work` are re-raised.
        """
        import adadf_dist
        import shards

        ray = import_ray()
        packages = [module.__path__[0] for module in (adadf_dist, shards)]
        try:
            ray.init(self.address, runtime_env={"py_modules": packages}, log_to_driver=False, logging_level="error")
        except ConnectionError as error:
            reason = single_line(error, 1000)
            raise UserError(f"--ray {self.address}: no cluster found ({reason}); run `ray start`") from None
        try:
            remote = ray.remote(run_and_count)
            work_ref, shared_ref = ray.put(work), ray.put(shared)
            refs = [remote.remote(work_ref, shared_ref, task) for task in tasks]
            results: dict[Any, R] = {}
            pending = refs
            while pending:
                (ready,), pending = ray.wait(pending)
                count, results[ready] = ray.get(ready)
                on_samples(count)
            return [results[ref] for ref in refs]
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        finally:
            ray.shutdown()


def run_and_count(work: Callable[[S, T, Callable[[], object]], R], shared: S, task: T) -> tuple[int, R]:
    """Run a task on a worker, and return the number of finished samples and the result."""
    counted: list[None] = []
    result = work(shared, task, lambda: counted.append(None))
    return len(counted), result


def import_ray() -> Any:
    """Import and return Ray. Raises `UserError` with installation instructions if the import fails."""
    try:
        import ray
    except ImportError as error:
        raise UserError(f"--ray needs Ray ({single_line(error)}): {install_or_repair(error, 'tune')}") from None
    return ray
