"""Runs a builder's tasks on a Ray cluster. The nodes must see the source and the output under the same paths."""

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
    """A worker pool that runs one Ray task per shard; a task whose node dies is repeated."""

    address: str
    """Cluster address; `auto` for the one on this machine, `local` to start one in this process."""

    def run(
        self,
        work: Callable[[S, T, Callable[[], object]], R],
        shared: S,
        tasks: Sequence[T],
        on_samples: Callable[[int], object],
    ) -> list[R]:
        """Run `work(shared, task, on_sample)` for every task and return the results in task order.

        Raises `UserError` if there is no cluster, and whatever `work` raises.
        """
        import adadf_dist
        import shards

        ray = import_ray()
        packages = [module.__path__[0] for module in (adadf_dist, shards)]
        try:
            ray.init(self.address, runtime_env={"py_modules": packages}, log_to_driver=False, logging_level="error")
        except ConnectionError as error:
            reason = single_line(error, 1000)
            raise UserError(f"--ray {self.address}: no cluster found ({reason}); start one with ray start") from None
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
    """Run a task on a worker, and count the samples that it reports as done."""
    counted: list[None] = []
    result = work(shared, task, lambda: counted.append(None))
    return len(counted), result


def import_ray() -> Any:
    """Import Ray. Raises `UserError` naming the extra if it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise UserError(f"--ray needs Ray ({single_line(error)}): {install_or_repair(error, 'tune')}") from None
    return ray
