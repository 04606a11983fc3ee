"""Prepare a run: check that ranks agree, resolve the configuration, lock the run folder, open data, log run info."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from adadf_dist.checkpoint.progress import TrainingProgress
from adadf_dist.config.keys import flatten
from adadf_dist.config.load import override, to_dict, with_absolute_paths
from adadf_dist.config.schema import Config
from adadf_dist.console.logs import get_logger
from adadf_dist.data.datamodule import DataModule, dali_unavailable_reason, open_data
from adadf_dist.data.identity import DATA_FILE, DataRecord, digest_files
from adadf_dist.data.label_noise import write_noise
from adadf_dist.data.loaders.streaming import STREAMING_LIMITATIONS
from adadf_dist.data.prepare import generate_synthetic_dataset, local_shards
from adadf_dist.data.sampling import check_batch_size
from adadf_dist.diagnostics.run_length import find_problems
from adadf_dist.distributed.world import World
from adadf_dist.engine.base import resolve_precision
from adadf_dist.engine.ddp import Engine, check_engine
from adadf_dist.errors import UserError
from adadf_dist.files.atomic import write_json
from adadf_dist.tracking.artifacts import save_samples
from adadf_dist.tracking.async_tracker import check_trackers
from adadf_dist.tracking.logger import RunLogger, open_logger
from adadf_dist.tracking.sample_history import select_tracked_samples
from adadf_dist.training.consistency import check_consistency

logger = get_logger(__name__)


@dataclass(frozen=True)
class RunContext:
    """Objects shared by all stages of a run."""

    config: Config
    """Configuration with absolute paths and every `auto` value resolved."""
    world: World
    data: DataModule
    data_record: DataRecord
    """Identity of the data, saved in checkpoints and compared when resuming."""
    tracked_samples: list[int]
    """Indices of the training samples whose distributions are recorded in every epoch."""
    log: RunLogger


@contextmanager
def prepare_run(config: Config, world: World) -> Iterator[RunContext]:
    """Prepare everything except the model, and release the run folder and the data when the block ends. Collective.

    Raises `UserError` if ranks or nodes differ, or if the configuration, the run folder or the data is invalid.
    """
    check_consistency(config, world)
    allow_other_data = config.allow_other_data
    config = prepare_config(replace(config, allow_other_data=False), world)
    with (
        local_shards(config, world) as folder,
        open_logger(config, world) as log,
        open_data(config, world.rank, world.size, world.device, folder) as data,
    ):
        files = digest_files(dict(flatten(to_dict(config))))
        record = DataRecord(data.source, data.train_split, files, allow_other_data)
        tracked = select_tracked_samples(data.train_split, config.runtime, config.seed)
        yield RunContext(config, world, data, record, tracked, log)


def prepare_config(config: Config, world: World) -> Config:
    """Resolve every `auto` value, make paths absolute, and generate a missing synthetic dataset. Collective.

    Raises `UserError` if training with this configuration is impossible.
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
    """Resolve every `auto` value on rank 0 for all ranks. Collective: every rank must call this.

    Raises `UserError` if the engine or a tracker is unavailable.
    """
    check_engine(config, world)
    check_trackers(config.runtime)
    resolved = {
        "data.loader": resolve_loader(config, world),
        "runtime.precision": resolve_precision(config, world.device),
    }
    return override(config, world.broadcast_object(resolved))  # type: ignore[arg-type]


def resolve_loader(config: Config, world: World) -> str:
    """Return the loader selected by `data.loader`. If it is `auto` and DALI is unavailable, log a hint."""
    if config.data.loader != "auto":
        return config.data.loader
    if config.data.access == "stream":
        return "torch"
    problem = dali_unavailable_reason() if world.is_main else ""
    if problem:
        logger.info(f"data.loader=torch (DALI would be faster, but {problem})")
    return "torch" if problem else "dali"


def run_info(data: DataModule, engine: Engine, world: World) -> dict[str, object]:
    """Return the run info, which is logged when the run starts and stored in the run folder."""
    splits = {
        "train": len(data.train_split),
        "validation": len(data.validation_split),
        "test": len(data.test_split) if data.test_split is not None else 0,
    }
    noise = {} if data.noise is None else {"label noise": data.noise.describe()}
    relabeling = {} if data.relabeling is None else {"relabeling": data.relabeling.describe()}
    weights = engine.weights._asdict() if engine.weights.source else "none: from scratch"
    access = {"access": STREAMING_LIMITATIONS} if data.stream is not None else {}
    return {
        "dataset": data.name,
        "shards": data.source.shards,
        **access,
        "faces": splits,
        "classes": list(data.classes),
        **relabeling,
        **noise,
        "ranks": f"{world.size} on {world.device.type}",
        "pretrained weights": weights,
    }


def write_run_info(context: RunContext, engine: Engine, progress: TrainingProgress, resumed: Path | None) -> None:
    """Log the run info, and write the configuration, data record and training samples to the run folder.

    `resumed`: checkpoint that the run resumes from, if any.
    """
    config, data, log = context.config, context.data, context.log
    log.start(progress, run_info(data, engine, context.world), resumed)
    for problem in find_problems(config, data.num_batches(0)):
        log.info(f"  warning: {problem.line}")
    if context.world.is_main:
        write_json(log.folder / DATA_FILE, context.data_record.to_dict())
        save_samples(log.folder, data.train_split, data.noise)
        if data.noise is not None:
            write_noise(log.folder / "label_noise.csv", data.train_split, data.noise)
