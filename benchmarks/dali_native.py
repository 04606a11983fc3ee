"""Loaders built from DALI's own webdataset reader and automatic augmentation, for comparison."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import redirect_stderr
from itertools import cycle
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.auto_aug import rand_augment
from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

from adadf_dist.data.dataset import Split

MEAN, STD = [0.485 * 255, 0.456 * 255, 0.406 * 255], [0.229 * 255, 0.224 * 255, 0.225 * 255]
OPERATIONS, MAGNITUDE = 3, 15
"""Operations per image and their magnitude: 15 of 31 bins, equivalent to 5 of 10."""


def pipeline_kwargs(batch: int, workers: int, device: torch.device) -> dict[str, Any]:
    """Return the pipeline arguments for a device, which all pipelines share."""
    gpu = device.type == "cuda"
    where = {"decoder": "mixed", "device_id": device.index or 0} if gpu else {"decoder": "cpu", "device_id": None}
    return {"batch_size": batch, "num_threads": max(workers, 1), **where}


@pipeline_def(enable_conditionals=True)  # type: ignore[untyped-decorator]
def reader_pipeline(tars: list[str], indexes: list[str], size: int, augment: bool, decoder: str) -> Any:
    encoded, label = fn.readers.webdataset(  # type: ignore[misc]
        paths=tars, index_paths=indexes, ext=["jpg", "cls"], random_shuffle=True, name="reader"
    )
    images = fn.decoders.image(encoded, device=decoder, output_type=types.RGB)
    images = fn.resize(images, size=[size, size], antialias=True)
    if augment:
        images = rand_augment.rand_augment(images, n=OPERATIONS, m=MAGNITUDE, fill_value=116)
    mirror = fn.random.coin_flip(probability=0.5 if augment else 0.0)
    pixels = fn.crop_mirror_normalize(images, mean=MEAN, std=STD, mirror=mirror, dtype=types.FLOAT)
    return pixels, fn.pad(label)


def reader_epochs(
    split: Split, size: int, augment: bool, batch: int, workers: int, device: torch.device
) -> Iterator[int]:
    """Load batches indefinitely with DALI's reader and yield the size of each."""
    tars = [str(split.folder / shard) for shard in split.shards]
    with redirect_stderr(io.StringIO()):  # deprecation warnings of DALI's augmentation
        pipeline = reader_pipeline(
            tars,
            [tar.removesuffix(".tar") + ".idx" for tar in tars],
            size,
            augment,
            **pipeline_kwargs(batch, workers, device),
        )
        batches = DALIGenericIterator(
            [pipeline], ["images", "labels"], reader_name="reader", last_batch_policy=LastBatchPolicy.PARTIAL
        )
    while True:
        for (made,) in batches:
            yield len(made["images"])
        batches.reset()


@pipeline_def  # type: ignore[untyped-decorator]
def decode_pipeline(source: Any, warp: bool, decoder: str) -> Any:
    encoded = fn.external_source(source=source, batch=True, no_copy=True, dtype=types.UINT8, ndim=1)
    images = fn.decoders.image(encoded, device=decoder, output_type=types.RGB)
    if warp:
        angle = fn.random.uniform(range=[-30.0, 30.0])
        matrix = fn.transforms.rotation(angle=angle, center=[50.0, 50.0])
        images = fn.warp_affine(images, matrix, fill_value=116)
    return images


def decode_epochs(split: Split, batch: int, workers: int, device: torch.device, warp: bool) -> Iterator[int]:
    """Decode batches in storage order indefinitely and yield the size of each."""
    starts = cycle(range(0, len(split) - batch + 1, batch))

    def source() -> list[Any]:
        start = next(starts)
        return [np.frombuffer(split.read(sample), np.uint8) for sample in range(start, start + batch)]

    pipeline = decode_pipeline(
        source,
        warp,
        **pipeline_kwargs(batch, workers, device),
    )
    while True:
        yield len(pipeline.run()[0])
