"""Make `data.shards` available on every node: generate synthetic data, download shards, compare local copies."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event

from adadf_dist.config.schema import Config, DataConfig
from adadf_dist.data.dataset import open_dataset
from adadf_dist.data.manifest import MANIFEST
from adadf_dist.data.remote.cache import ensure_cached, entry_folder, streamed_splits
from adadf_dist.data.remote.client import is_remote, local_path
from adadf_dist.data.synthetic.dataset import build_synthetic_dataset
from adadf_dist.distributed.environment import local_rank_from_env
from adadf_dist.distributed.nodes import describe_mismatch, format_nodes, gather_per_node
from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError

POLL_S = 0.5
"""Interval in seconds at which all ranks check whether the download has finished."""


def generate_synthetic_dataset(config: Config, world: World) -> None:
    """Generate the configured synthetic dataset on rank 0 if it does not exist yet; the other ranks wait."""
    folder = local_path(config.data.shards)
    if not config.data.synthetic_samples or is_remote(config.data.shards):
        return
    if world.broadcast_object(folder.exists()):  # use rank 0's result: the folder may appear at any time
        return
    if world.is_main:
        train, validation, test = config.data.synthetic_samples
        build_synthetic_dataset(folder, {"train": train, "validation": validation, "test": test}, workers=2)
    world.barrier()


@contextmanager
def local_shards(config: Config, world: World) -> Iterator[Path]:
    """Yield the local folder of `data.shards`; each node's first rank downloads remote shards.

    Collective: every rank must call this. A download may take any length of time: all ranks check it every `POLL_S`
    seconds, so the process group does not time out. Raises `UserError` on all ranks if any node lacks the folder or
    fails to download it.
    """
    if not is_remote(config.data.shards):
        if problem := find_shards_mismatch(config.data, world):
            raise problem
        yield local_path(config.data.shards)
        return
    with ExitStack() as stack, ThreadPoolExecutor(1) as thread:
        cancelled = Event()
        task: Future[Path] | None = None
        if local_rank_from_env() == 0:
            task = thread.submit(stack.enter_context, ensure_cached(config.data, world.is_main, cancelled))
        try:
            yield entry_folder(config.data, wait_for_fetch(task, world))
        finally:
            cancelled.set()  # otherwise, exiting would wait for the thread


def wait_for_fetch(task: Future[Path] | None, world: World) -> str:
    """Wait until all nodes have downloaded the dataset, and return the name of their common cache entry.

    Collective: every rank must call this.
    """
    while True:
        reports = [report for r in world.all_gather_object(poll_fetch(task)) if isinstance(report := r, tuple)]
        problem = next((text for text, _ in reports if text), "")
        if problem:
            if task is not None and task.done() and not isinstance(task.exception(), (UserError, type(None))):
                task.result()
            raise UserError(problem)
        if world.should_stop():
            raise UserError("interrupted while downloading shards; completed files are kept. Rerun to continue")
        if len(reports) == world.size:
            names = sorted({name for _, name in reports} - {""})
            if len(names) > 1:
                raise UserError("data.shards changed while the nodes were downloading it; run the command again")
            return str(names[0])


def poll_fetch(task: Future[Path] | None) -> tuple[str, str] | None:
    """Return (problem, cache entry name) of a finished download, ("", "") if none was needed, or None while it runs."""
    if task is None:
        time.sleep(POLL_S)
        return "", ""
    if not wait([task], POLL_S).done:
        return None
    error = task.exception()
    if error is not None:
        return str(error) or type(error).__name__, ""
    return "", task.result().name


def find_shards_mismatch(data: DataConfig, world: World) -> UserError | None:
    """Return an error if any node cannot read its local `data.shards` or if the nodes have different datasets.

    Collective: every rank must call this.
    """
    found = gather_per_node(world, lambda: probe_shards(data))
    problems = {node: problem for node, (problem, _) in found.items() if problem}
    if len(problems) == len(found):
        return next(iter(problems.values()))
    if problems:
        problem = next(iter(problems.values()))
        others = format_nodes([node for node in found if node not in problems])
        return UserError(
            f"data.shards on {format_nodes(list(problems))}: {problem}; it can be read on {others}",
            "copy the dataset to every node, or use a folder that all nodes share",
        )
    return describe_mismatch(
        {node: {MANIFEST: digest} for node, (_, digest) in found.items()},
        "data.shards: the digest of {name} is {values}",
        "copy the same dataset to every node",
    )


def probe_shards(data: DataConfig) -> tuple[UserError | None, str]:
    """Check the dataset folder on this node. Return (None, digest of `dataset.json`) or (error, "")."""
    folder = local_path(data.shards)
    try:
        open_dataset(folder, streamed_splits(data))
        return None, hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()[:12]
    except UserError as error:
        return error, ""
    except OSError as error:
        return UserError(f"{error.filename}: {error.strerror}"), ""
