"""Run a function on several ranks, with a time limit and the failing rank's traceback."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from adadf_dist.console.logs import configure_logging
from adadf_dist.distributed.world import World, init_world
from tests.helpers.waiting import IdleLimit


class Job(NamedTuple):
    """What a rank runs."""

    rank: int
    ranks: int
    folder: str
    """Where the ranks meet and leave their results."""
    function: Callable[..., Any]
    arguments: tuple[object, ...]


def run_ranks(function: Callable[..., Any], ranks: int, *args: object, timeout: float = 120) -> list[Any]:
    """`function(world, *args)` on each of `ranks` processes; their results in rank order.

    The processes are forked from a server that has imported the trainer already (tests/conftest.py).
    Fails with the first failing rank's traceback, or with the names of those that have not ended when all of them are
    idle for `timeout` seconds.
    """
    context = mp.get_context("forkserver")
    results: dict[int, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(ranks)]
        processes = [
            context.Process(
                target=run_rank,
                args=(sender, dict(os.environ), Job(rank, ranks, folder, function, args)),
                daemon=True,
            )
            for rank, (_, sender) in enumerate(pipes)
        ]
        try:
            for process, (_, sender) in zip(processes, pipes, strict=True):
                process.start()
                sender.close()
            waiting = {receiver: rank for rank, (receiver, _) in enumerate(pipes)}
            limit = IdleLimit(timeout, [process.pid for process in processes if process.pid])
            while waiting:
                while not (ready := wait(list(waiting), 1)):
                    limit.check(f"ranks {sorted(waiting.values())} have not ended")
                for receiver in ready:
                    assert isinstance(receiver, Connection)
                    rank = waiting.pop(receiver)
                    try:
                        failure = receiver.recv()
                    except EOFError:
                        raise AssertionError(f"rank {rank} died without a word") from None
                    assert not failure, f"rank {rank} failed:\n{failure}"
                    results[rank] = torch.load(Path(folder) / f"{rank}.pt", weights_only=False)
        finally:
            for process in processes:
                process.kill()
                process.join()
    return [results[rank] for rank in range(ranks)]


def run_rank(sender: Connection, environment: dict[str, str], job: Job) -> None:
    """Save the function's result in the job's folder, and send an empty text or a traceback. Runs in a rank."""
    os.environ.update(environment, GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    rank, ranks, folder = job.rank, job.ranks, Path(job.folder)
    configure_logging(rank)
    try:
        store = dist.FileStore(str(folder / "store"), ranks)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
        with init_world(60) as world:  # adopts the group
            assert (world.rank, world.size) == (rank, ranks)
            result = job.function(world, *job.arguments)
        dist.barrier()
        torch.save(result, folder / f"{rank}.pt")
        sender.send("")
    except BaseException:
        sender.send(traceback.format_exc())
        raise


def single_process_world() -> World:
    """The world of a single process."""
    return World(torch.device("cpu"))
