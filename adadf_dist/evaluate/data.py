"""Open the split to evaluate, from any dataset folder or URL, and create its data loader."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from adadf_dist.checkpoint.trained_model import TrainedModel
from adadf_dist.config.schema import Config
from adadf_dist.console.logs import get_logger
from adadf_dist.data.batch import Batch
from adadf_dist.data.datamodule import dali_unavailable_reason, hold_out_validation, make_loader
from adadf_dist.data.dataset import Split, open_dataset
from adadf_dist.data.identity import Source
from adadf_dist.data.loaders.base import Loader, LoaderConfig
from adadf_dist.data.manifest import read_manifest
from adadf_dist.data.prepare import local_shards
from adadf_dist.data.preprocessing import Preprocessing
from adadf_dist.data.remote.client import scheme_of
from adadf_dist.data.sampling import split_batches
from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError
from adadf_dist.evaluate.cli import EvalArgs
from adadf_dist.evaluate.origin import Found

logger = get_logger(__name__)


@contextmanager
def open_split(options: EvalArgs, run: Config, world: World) -> Iterator[Found]:
    """Open the split to evaluate. Raises `UserError` if it does not exist. Collective: every rank must call this.

    Training tars of a remote dataset are downloaded only if they contain samples of the split.
    """
    data = replace(run.data, shards=options.shards, cache_dir=options.cache_dir)
    with local_shards(replace(run, data=replace(data, access="stream")), world) as folder:
        manifest = read_manifest(folder)
        splits, source = tuple(manifest.splits), Source(absolute(options.shards), manifest.digests())
        name = options.split or next((name for name in ("test", "validation") if name in splits), "validation")
        if name in splits and name != "train":
            yield Found(open_dataset(folder, ["train"]).split(name), source, name)
            return
    if name == "test" or "train" not in splits:
        raise UserError(f"{data.shards}: has no {name} split; pass one of its splits as --split: {', '.join(splits)}")
    with local_shards(replace(run, data=replace(data, access="cache")), world) as folder:
        split = open_dataset(folder).split("train")
        if "validation" not in splits:
            split = next(part for part in hold_out_validation(split, run) if part.name == name)
        yield Found(split, source, "train")


def absolute(shards: str) -> str:
    """Return a folder's absolute path; a URL is returned unchanged."""
    return shards if scheme_of(shards) else str(Path(shards).absolute())


@contextmanager
def make_eval_loader(split: Split, trained: TrainedModel, options: EvalArgs, world: World) -> Iterator[Loader]:
    """Yield a data loader for the split, and close it at the end. Raises `UserError` if the loader is unavailable."""
    name, own, run = options.loader, trained.preprocessing, trained.config
    if name == "dali" and (problem := dali_unavailable_reason()):
        origin = "the run's loader" if own.loader == name else "--loader"
        raise UserError(f"{origin} is dali, but {problem}; alternatively, pass --loader torch")
    if name != own.loader:
        logger.info(f"note: using loader {name} instead of the run's {own.loader}; pixel values may differ by 1")
    config = LoaderConfig(
        splits={split.name: split},
        preprocessing=eval_preprocessing(own, options.tta),
        augment=run.augment,
        seed=run.seed,
        device=world.device,
        rank=world.rank,
        ranks=world.size,
        batch_size=options.batch_size,
        workers=options.num_workers or 0,
        prefetch=run.data.prefetch_batches,
        max_bad_samples=0,
    )
    loader = make_loader(name, config)
    try:
        yield loader
    finally:
        loader.close()


def eval_preprocessing(own: Preprocessing, tta: str) -> Preprocessing:
    """Return the run's preprocessing, with ten crops if `tta` requests them. Raises `UserError` if the two conflict."""
    if tta == "flip" and own.ten_crop:
        raise UserError("--tta flip: the run uses ten crops, five of them mirrored; omit --tta")
    if tta == "tencrop" and not own.ten_crop:
        return replace(own, ten_crop=round(256 / 224 * own.image_size))
    return own


def eval_batches(loader: Loader, split: Split, options: EvalArgs) -> Iterator[Batch]:
    """Yield this rank's batches. With `--tta flip`, each sample has two crops: the image and its mirror image."""
    plan = split_batches(np.arange(len(split)), options.batch_size)
    for batch in loader.batches(split.name, plan):
        if options.tta == "flip":
            batch = batch.add_mirror_images()
        yield batch
