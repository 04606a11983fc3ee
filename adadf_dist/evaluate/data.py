"""The faces that are asked about: one split of any dataset folder or URL, and the loader that shows them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from adadf_dist.checkpoint.trained_model import TrainedModel
from adadf_dist.config.schema import Config
from adadf_dist.data.batch import Batch
from adadf_dist.data.datamodule import dali_unavailable_reason, hold_out_validation, make_loader
from adadf_dist.data.dataset import Split, open_dataset
from adadf_dist.data.identity import Source
from adadf_dist.data.loaders.base import Loader, LoaderConfig
from adadf_dist.data.manifest import read_manifest
from adadf_dist.data.preprocessing import Preprocessing
from adadf_dist.data.remote.client import scheme_of
from adadf_dist.data.sampling import split_batches
from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError
from adadf_dist.evaluate.cli import EvalArgs
from adadf_dist.evaluate.origin import Found
from adadf_dist.training.setup import local_shards


@contextmanager
def open_split(options: EvalArgs, run: Config, world: World) -> Iterator[Found]:
    """The split to look at, as the dataset has it. A collective. Raises `UserError`.

    Of a dataset elsewhere the training tars are fetched only where the split's faces stand in them.
    """
    data = replace(run.data, shards=options.shards, cache=options.cache)
    with local_shards(replace(run, data=replace(data, access="stream")), world) as folder:
        manifest = read_manifest(folder)
        there, source = tuple(manifest.splits), Source(absolute(options.shards), manifest.digests())
        name = options.split or next((name for name in ("test", "validation") if name in there), "validation")
        if name in there and name != "train":
            yield Found(open_dataset(folder, ["train"]).split(name), source, name)
            return
    if name == "test" or "train" not in there:
        raise UserError(f"{data.shards}: has no {name} split; it has {', '.join(there)}: give one of them as --split")
    with local_shards(replace(run, data=replace(data, access="cache")), world) as folder:
        whole = open_dataset(folder).split("train")
        split = whole if "validation" in there else {part.name: part for part in hold_out_validation(whole, run)}[name]
        yield Found(split, source, "train")


def absolute(shards: str) -> str:
    """A folder's full path; a URL as it is."""
    return shards if scheme_of(shards) else str(Path(shards).absolute())


@contextmanager
def make_eval_loader(split: Split, trained: TrainedModel, options: EvalArgs, world: World) -> Iterator[Loader]:
    """A loader of one split. Raises `UserError` where it cannot be had."""
    name, own, run = options.loader, trained.preprocessing, trained.config
    if name == "dali" and (problem := dali_unavailable_reason()):
        whose = "the run's loader" if own.loader == name else "--loader"
        raise UserError(f"{whose} is dali, but {problem}, or give --loader torch")
    if name != own.loader and world.is_main:
        told = f"note: the loader is {name}, the run's was {own.loader}: a pixel may differ by a level"
        print(told, file=sys.stderr, flush=True)
    recipe = LoaderConfig(
        splits={split.name: split},
        preprocessing=eval_preprocessing(own, options.tta),
        augment=run.augment,
        seed=run.seed,
        device=world.device,
        rank=world.rank,
        ranks=world.size,
        batch_size=options.batch_size,
        workers=options.workers or 0,
        prefetch=run.data.prefetch,
        max_bad_faces=0,
    )
    loader = make_loader(name, recipe)
    try:
        yield loader
    finally:
        loader.close()


def eval_preprocessing(own: Preprocessing, tta: str) -> Preprocessing:
    """The run's own, with ten crops where they are wanted and the run took none. Raises `UserError`."""
    if tta == "flip" and own.ten_crop:
        raise UserError("--tta flip: the run takes ten crops of each face, five of them mirrored; leave --tta out")
    if tta == "tencrop" and not own.ten_crop:
        return replace(own, ten_crop=round(256 / 224 * own.image_size))
    return own


def eval_batches(loader: Loader, split: Split, options: EvalArgs) -> Iterator[Batch]:
    """This rank's batches of all faces, each once; with --tta flip as two rows: as it is, and mirrored."""
    plan = split_batches(np.arange(len(split)), options.batch_size)
    for batch in loader.batches(split.name, plan):
        if options.tta == "flip":
            batch = batch._replace(images=torch.stack([batch.images, batch.images.flip(-1)], dim=1))
        yield batch
