"""Setup before the first step: resolve `auto` values, create the demo dataset, fetch shards, and collect run info."""

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
from adadf_dist.data.sampling import check_batch_size
from adadf_dist.data.synthetic.dataset import build_synthetic_dataset
from adadf_dist.distributed.world import World, local_rank_from_env
from adadf_dist.engine.base import resolve_precision
from adadf_dist.engine.ddp import Engine, check_engine
from adadf_dist.errors import UserError
from adadf_dist.tracking.async_tracker import check_trackers
from adadf_dist.training.consistency import find_shards_mismatch

POLL_S = 0.5
"""Seconds between checks by all ranks whether the shards are downloaded."""


def prepare_config(config: Config, world: World) -> Config:
    """Resolve every `auto`, make paths absolute, and generate a missing synthetic dataset. Collective.

    Raises `UserError` for a configuration with which no step could run.
    """
    check_batch_size(config.batch_size, world.size)
    if not config.out:
        raise UserError("out is not set; pass a run folder with --out")
    if not config.data.shards:
        raise UserError("data.shards is not set; pass a dataset folder written by `python -m shards.build`")
    config = with_absolute_paths(config)
    generate_synthetic_dataset(config, world)
    return resolve_auto(config, world)


def resolve_auto(config: Config, world: World) -> Config:
    """Resolve every `auto` on rank 0 and use the result on all ranks. Collective: every rank must call this.

    Raises `UserError` for an engine or tracker that is unavailable.
    """
    check_engine(config, world)
    check_trackers(config.runtime)
    settled = {
        "data.loader": resolve_loader(config, world),
        "runtime.precision": resolve_precision(config, world.device),
    }
    return override(config, world.broadcast_object(settled))  # type: ignore[arg-type]


def resolve_loader(config: Config, world: World) -> str:
    """Resolve `data.loader` = auto; print a hint if DALI is unavailable."""
    if config.data.loader != "auto":
        return config.data.loader
    if config.data.access == "stream":
        return "torch"
    problem = dali_unavailable_reason() if world.is_main else ""
    if problem:
        print(f"data.loader=torch (DALI would be faster, but {problem})", file=sys.stderr, flush=True)
    return "torch" if problem else "dali"


def generate_synthetic_dataset(config: Config, world: World) -> None:
    """Render a missing synthetic dataset of `data.embedded_faces` samples on rank 0; the other ranks wait."""
    folder = local_path(config.data.shards)
    if not config.data.embedded_faces or is_remote(config.data.shards):
        return
    if world.broadcast_object(folder.exists()):  # use rank 0's result: the folder may appear at any time
        return
    if world.is_main:
        train, validation, test = config.data.embedded_faces
        build_synthetic_dataset(folder, {"train": train, "validation": validation, "test": test}, workers=2)
    world.barrier()


@contextmanager
def local_shards(config: Config, world: World) -> Iterator[Path]:
    """Return `data.shards` as a local folder; each node's first rank downloads remote shards. Collective.

    The wait for a download is unlimited: the ranks poll every `POLL_S`, so the process group does not time out. Raises
    `UserError` on all ranks if one node lacks the folder or its download fails.
    """
    if not is_remote(config.data.shards):
        if problem := find_shards_mismatch(config.data, world):
            raise problem
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
            cancelled.set()  # otherwise, exiting would wait for the thread


def wait_for_fetch(task: Future[Path] | None, world: World) -> str:
    """Wait for the downloads of all nodes, and return the name of their common cache entry. Collective."""
    while True:
        reports = [report for r in world.all_gather_object(poll_fetch(task)) if isinstance(report := r, tuple)]
        problem = next((text for text, _ in reports if text), "")
        if problem:
            if task is not None and task.done() and not isinstance(task.exception(), (UserError, type(None))):
                task.result()
            raise UserError(problem)
        if world.should_stop():
            raise UserError("interrupted while downloading shards; completed files are kept. Rerun to resume.")
        if len(reports) == world.size:
            names = sorted({name for _, name in reports} - {""})
            if len(names) > 1:
                raise UserError("data.shards changed while the nodes were downloading it; rerun")
            return str(names[0])


def poll_fetch(task: Future[Path] | None) -> tuple[str, str] | None:
    """Return (problem, entry name) of a finished download, ("", "") on ranks without one, None while it is running."""
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
    """Return the run info shown at the start and stored in the run folder."""
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
