"""Before the first step: what `auto` means here, demo faces where they are wanted, and the facts of a run."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event

from adadf_dist.config.load import override, with_absolute_paths
from adadf_dist.config.schema import Config
from adadf_dist.data.datamodule import DataModule, dali_unavailable_reason
from adadf_dist.data.loaders.streaming import STREAMING_LIMITATIONS
from adadf_dist.data.remote.cache import ensure_cached, entry_folder
from adadf_dist.data.remote.client import is_remote, local_path
from adadf_dist.data.synthetic.dataset import build_synthetic_dataset
from adadf_dist.distributed.world import World, check_batch_size, local_rank_from_env
from adadf_dist.engine.base import resolve_precision
from adadf_dist.engine.ddp import Engine, check_engine
from adadf_dist.errors import UserError
from adadf_dist.tracking.async_tracker import check_trackers
from adadf_dist.training.consistency import find_shards_mismatch

POLL_S = 0.5
"""Seconds between two looks of all ranks at whether the shards are fetched."""


def prepare_config(config: Config, world: World) -> Config:
    """Settle every `auto`, make paths absolute, and draw the embedded faces where they are missing. A collective.

    Raises `UserError` for what no step could be run with.
    """
    check_batch_size(config.batch_size, world)
    if not config.out:
        raise UserError("out is empty: give the run folder")
    if not config.data.shards:
        raise UserError("data.shards is empty: give the folder that `python -m shards.build` wrote")
    config = with_absolute_paths(config)
    generate_synthetic_dataset(config, world)
    return resolve_auto(config, world)


def resolve_auto(config: Config, world: World) -> Config:
    """Replace every `auto` by what it means on this machine. A collective: the answer is rank 0's.

    Raises `UserError` for an engine or a tracker that cannot be had here.
    """
    check_engine(config, world)
    check_trackers(config.runtime)
    settled = {
        "data.loader": resolve_loader(config, world),
        "runtime.precision": resolve_precision(config, world.device),
    }
    return override(config, world.broadcast_object(settled))  # type: ignore[arg-type]


def resolve_loader(config: Config, world: World) -> str:
    """What `auto` means here; said once, with what it costs, when it is not DALI for want of it."""
    if config.data.loader != "auto":
        return config.data.loader
    if config.data.access == "stream":
        return "torch"
    problem = dali_unavailable_reason() if world.is_main else ""
    if problem:
        print(f"data.loader is torch: DALI would be faster, but {problem}", file=sys.stderr, flush=True)
    return "torch" if problem else "dali"


def generate_synthetic_dataset(config: Config, world: World) -> None:
    """Rank 0 draws `data.embedded_faces` into `data.shards`; the others wait."""
    folder = local_path(config.data.shards)
    if not config.data.embedded_faces or is_remote(config.data.shards):
        return
    if world.broadcast_object(folder.exists()):  # rank 0's look: it may be there a moment later
        return
    if world.is_main:
        train, validation, test = config.data.embedded_faces
        build_synthetic_dataset(folder, {"train": train, "validation": validation, "test": test}, workers=2)
    world.barrier()


@contextmanager
def local_shards(config: Config, world: World) -> Iterator[Path]:
    """`data.shards` as a folder of this node: what is remote is fetched by each node's first rank. A collective.

    A folder that one node lacks ends all. What is fetched is waited for, however long it takes: the others look each
    `POLL_S` whether it is done, so no time limit of the process group counts it as silence, and a failure on one node
    ends all. Raises `UserError`.
    """
    if not is_remote(config.data.shards):
        if problem := find_shards_mismatch(config.data, world):
            raise UserError(problem)
        yield local_path(config.data.shards)
        return
    with ExitStack() as held, ThreadPoolExecutor(1) as thread:
        cancelled = Event()
        task: Future[Path] | None = None
        if local_rank_from_env() == 0:
            task = thread.submit(held.enter_context, ensure_cached(config.data, world.is_main, cancelled))
        try:
            yield entry_folder(config.data, wait_for_fetch(task, world))
        finally:
            cancelled.set()  # or the thread would be waited for, whatever ended us


def wait_for_fetch(task: Future[Path] | None, world: World) -> str:
    """Wait for every node's fetch, and return the name of the entry that all of them found. A collective."""
    while True:
        reports = [report for r in world.all_gather_object(poll_fetch(task)) if isinstance(report := r, tuple)]
        problem = next((text for text, _ in reports if text), "")
        if problem:
            if task is not None and task.done() and not isinstance(task.exception(), (UserError, type(None))):
                task.result()
            raise UserError(problem)
        if world.should_stop():
            raise UserError("asked to stop while fetching shards; what was fetched is kept: start again to go on")
        if len(reports) == world.size:
            names = sorted({name for _, name in reports} - {""})
            if len(names) > 1:
                raise UserError("data.shards changed while the nodes were fetching it; start again")
            return str(names[0])


def poll_fetch(task: Future[Path] | None) -> tuple[str, str] | None:
    """(problem, name of the entry) of a fetch that is over, ("", "") where another rank fetches, None while it runs."""
    if task is None:
        time.sleep(POLL_S)
        return "", ""
    if not wait([task], POLL_S).done:
        return None
    error = task.exception()
    if error is not None:
        return str(error) or type(error).__name__, ""
    return "", task.result().name


def run_info(data: DataModule, engine: Engine, world: World) -> dict[str, object]:
    """What a reader of the run folder wants to know first."""
    splits = {
        "train": len(data.train_split),
        "validation": len(data.validation_split),
        "test": len(data.test_split) if data.test_split is not None else 0,
    }
    noise = {} if data.noise is None else {"label noise": data.noise.describe()}
    relabelling = {} if data.relabelling is None else {"relabelling": data.relabelling.describe()}
    weights = engine.weights._asdict() if engine.weights.source else "none: from scratch"
    access = {"access": STREAMING_LIMITATIONS} if data.stream is not None else {}
    return {
        "dataset": data.name,
        "shards": data.source.shards,
        **access,
        "faces": splits,
        "classes": list(data.classes),
        **relabelling,
        **noise,
        "ranks": f"{world.size} on {world.device.type}",
        "pretrained weights": weights,
    }
