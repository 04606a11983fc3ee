"""Sampling of augmentations: a pure function of (seed, epoch, sample) returns a short list of stages.

The list is the complete specification; loaders only apply it. Adjacent warps are merged into one warp, and adjacent
lookup tables into one table. The stages act, in order, on 8-bit RGB images at the network's size; then comes the flip,
and, after normalization, the erasing. A batch's lists are sampled together as arrays, with one row per sample.

Coordinates: the image is the unit square, (0, 0) its top left corner, x to the right, y down; the center of pixel
(row i, column j) of an H x W image is ((j + 0.5) / W, (i + 0.5) / H).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adadf_dist.config.schema import AugmentConfig
from adadf_dist.data.augment.operations import PAPER_OPS, TORCHVISION_OPS, Operation, OpKind, compose
from adadf_dist.data.augment.rng import Numbers, Rows, SampleRng

FILL = (124, 116, 104)
"""RGB color of warped pixels that come from outside the image: the mean color of natural images."""
LUMA = (0.299, 0.587, 0.114)
"""ITU-R 601 luma weights of R, G and B."""
MAX_LEVEL = 10.0
LEVEL_STD = 0.5
APPLY_PROB = 0.5
"""Probability that the `paper` policy applies a sampled operation."""
ERASE_RATIO = (0.3, 3.3)
ERASE_TRIES = 10
STANDARD_BINS = 31


class AugmentationBatch(NamedTuple):
    """Augmentations of n samples in one epoch, each with at most k stages."""

    kinds: NDArray[np.int8]
    """[n, k], the `OpKind` of each stage, in order; unused entries at the end of a row are `NOTHING`."""
    matrices: NDArray[np.float64]
    """[n, k, 2, 3], affine matrices of `WARP` stages, in unit coordinates."""
    tables: NDArray[np.uint8]
    """[n, k, 256], lookup tables of `TABLE` stages."""
    factors: NDArray[np.float64]
    """[n, k], factors of `COLOR`, `CONTRAST` and `SHARPNESS` stages."""
    flips: NDArray[np.bool_]
    """[n], whether to mirror each image left to right."""
    boxes: NDArray[np.int64]
    """[n, 4], box erased in each image: top, left, bottom, right in pixels (last two exclusive); all 0 for none."""

    @property
    def num_samples(self) -> int:
        return len(self.flips)

    def rows(self, rows: slice) -> AugmentationBatch:
        """Return the augmentations of the samples in the slice `rows`."""
        return AugmentationBatch._make(values[rows] for values in self)


def identity(num_samples: int, stages: int = 0) -> AugmentationBatch:
    """Return no-op augmentations for `num_samples` samples, with room for `stages` stages each."""
    return AugmentationBatch(
        np.zeros((num_samples, stages), dtype=np.int8),
        np.zeros((num_samples, stages, 2, 3)),
        np.zeros((num_samples, stages, 256), dtype=np.uint8),
        np.zeros((num_samples, stages)),
        np.zeros(num_samples, dtype=np.bool_),
        np.zeros((num_samples, 4), dtype=np.int64),
    )


def sample_augmentations(
    config: AugmentConfig, size: int, seed: int, epoch: int, samples: Sequence[int] | NDArray[np.int64]
) -> AugmentationBatch:
    """Sample the augmentations of training samples. Each sample's augmentation is independent of the other samples.

    Args:
        size: side length of the network's input in pixels, which limits the erasing boxes.
        epoch: counted from 0; -1 disables augmentation.
        samples: indices within the split.
    """
    if epoch < 0:
        return identity(len(samples))
    rng = SampleRng(seed, epoch, samples)
    every = np.arange(len(samples))
    batch = identity(len(samples), 0 if config.policy == "none" else config.num_ops)
    stages = OpChainBuilder(batch)
    batch.flips[:] = rng.uniform(every) < config.flip_prob
    sample_erase_boxes(config, size, rng, batch.boxes)
    for _ in range(batch.kinds.shape[1]):
        if config.policy == "paper":
            sample_paper_policy(config.magnitude, rng, stages)
        else:
            sample_torchvision_policy(config.magnitude, rng, stages)
    return batch


def sample_erase_boxes(config: AugmentConfig, size: int, rng: SampleRng, boxes: NDArray[np.int64]) -> None:
    """Fill `boxes` with boxes for random erasing (Zhong et al.); a box that does not fit is resampled a few times."""
    unplaced = np.flatnonzero(rng.uniform(np.arange(len(boxes))) < config.erase_prob)
    for _ in range(ERASE_TRIES):
        area = size * size * rng.uniform(unplaced, *config.erase_scale)
        ratio = np.exp(rng.uniform(unplaced, math.log(ERASE_RATIO[0]), math.log(ERASE_RATIO[1])))
        height, width = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        fits = (height > 0) & (height < size) & (width > 0) & (width < size)
        rows, h, w = unplaced[fits], height[fits].astype(np.int64), width[fits].astype(np.int64)
        top = rng.integers(rows, size - h + 1)
        left = rng.integers(rows, size - w + 1)
        boxes[rows] = np.stack([top, left, top + h, left + w], axis=1)
        unplaced = unplaced[~fits]
        if not len(unplaced):
            break


def sample_paper_policy(magnitude: float, rng: SampleRng, stages: OpChainBuilder) -> None:
    """Add one round of the paper's policy: one of 15 operations at a random level, applied with probability 0.5."""
    every = np.arange(stages.batch.num_samples)
    chosen = rng.integers(every, len(PAPER_OPS))
    applied = rng.uniform(every) < APPLY_PROB
    levels = np.clip(magnitude + LEVEL_STD * rng.normal(every), 0.0, MAX_LEVEL)
    for number, operation in enumerate(PAPER_OPS):
        rows = np.flatnonzero((chosen == number) & applied)
        stages.add(operation, rows, levels[rows], rng)


def sample_torchvision_policy(magnitude: float, rng: SampleRng, stages: OpChainBuilder) -> None:
    """Add one round of torchvision's RandAugment: one of 14 operations, at magnitude bin `magnitude` of 31."""
    chosen = rng.integers(np.arange(stages.batch.num_samples), len(TORCHVISION_OPS))
    strength = min(int(magnitude), STANDARD_BINS - 1) / (STANDARD_BINS - 1)
    for number, operation in enumerate(TORCHVISION_OPS):
        rows = np.flatnonzero(chosen == number)
        stages.add(operation, rows, np.full(len(rows), strength), rng)


class OpChainBuilder:
    """Builds lists of stages, merging consecutive stages of the same kind where possible.

    Consecutive warps become one warp (and one interpolation), lookup tables one table, and saturation changes one
    saturation change.
    """

    def __init__(self, batch: AugmentationBatch) -> None:
        self.batch = batch
        self._lengths = np.zeros(batch.num_samples, dtype=np.int64)

    def add(self, operation: Operation, rows: Rows, levels: Numbers, rng: SampleRng) -> None:
        """Append the operation to the stage lists of the samples in `rows`, each at its own level."""
        if not len(rows) or operation.kind == OpKind.NOTHING:
            return
        if operation.signed:
            levels = rng.random_sign(rows, levels)
        kind = operation.kind
        params = operation.params_from_level(levels)
        lengths = self._lengths[rows]
        joins = np.zeros(len(rows), dtype=np.bool_)
        if kind in (OpKind.WARP, OpKind.TABLE, OpKind.COLOR):
            joins = (lengths > 0) & (self.batch.kinds[rows, lengths - 1] == kind)
        cells = rows, np.where(joins, lengths - 1, lengths)
        self.batch.kinds[cells] = kind
        self._lengths[rows] += ~joins
        match kind:
            case OpKind.WARP:
                joined = compose(self.batch.matrices[cells], params)
                self.batch.matrices[cells] = np.where(joins[:, None, None], joined, params)
            case OpKind.TABLE:
                joined = np.take_along_axis(params, self.batch.tables[cells].astype(np.int64), axis=1)
                self.batch.tables[cells] = np.where(joins[:, None], joined, params)
            case OpKind.COLOR:
                self.batch.factors[cells] = np.where(joins, self.batch.factors[cells], 1.0) * params
            case OpKind.CONTRAST | OpKind.SHARPNESS:
                self.batch.factors[cells] = params
