"""Augmentation as data: a pure function of (seed, epoch, sample) returns a short list of stages.

The list is the complete specification; loaders only apply it. Stages are in normal form: adjacent warps are merged into
one warp, adjacent tables into one table. They act on 8-bit RGB at the network's size, in order; then the flip; then,
after normalization, the erasing. A batch's lists are sampled together as arrays; each sample's list is one row.

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
"""RGB fill of warps outside the image: the mean of natural images."""
LUMA = (0.299, 0.587, 0.114)
"""ITU-R 601 weights of R, G, B."""
MAX_LEVEL = 10.0
LEVEL_STD = 0.5
APPLY_PROB = 0.5
"""`paper`: probability that a sampled operation is applied."""
ERASE_RATIO = (0.3, 3.3)
ERASE_TRIES = 10
STANDARD_BINS = 31


class AugmentationBatch(NamedTuple):
    """Augmentation of each of n samples in one epoch, with at most k stages."""

    kinds: NDArray[np.int8]
    """[n, k], `OpKind`; a sample's stages come first, in order."""
    matrices: NDArray[np.float64]
    """[n, k, 2, 3], unit coordinates."""
    tables: NDArray[np.uint8]
    """[n, k, 256]"""
    factors: NDArray[np.float64]
    """[n, k]"""
    flips: NDArray[np.bool_]
    """[n], whether to mirror left to right."""
    boxes: NDArray[np.int64]
    """[n, 4], pixels zeroed after normalization: top, left, bottom and right (both exclusive); empty for none."""

    @property
    def faces(self) -> int:
        return len(self.flips)

    def rows(self, chosen: slice) -> AugmentationBatch:
        """Return the rows of some samples."""
        return AugmentationBatch._make(values[chosen] for values in self)


def identity(faces: int, stages: int = 0) -> AugmentationBatch:
    """Return the identity augmentation of `faces` samples, with room for `stages` stages."""
    return AugmentationBatch(
        np.zeros((faces, stages), dtype=np.int8),
        np.zeros((faces, stages, 2, 3)),
        np.zeros((faces, stages, 256), dtype=np.uint8),
        np.zeros((faces, stages)),
        np.zeros(faces, dtype=np.bool_),
        np.zeros((faces, 4), dtype=np.int64),
    )


def sample_augmentations(
    config: AugmentConfig, size: int, seed: int, epoch: int, samples: Sequence[int] | NDArray[np.int64]
) -> AugmentationBatch:
    """Sample the augmentations of training samples. Pure, and each sample's result is independent of the others.

    Args:
        size: side of the network's input in pixels, the unit of the erasing boxes.
        epoch: counted from 0; -1: no augmentation.
        samples: indices within the split.
    """
    if epoch < 0:
        return identity(len(samples))
    draws = SampleRng(seed, epoch, samples)
    every = np.arange(len(samples))
    stages = OpChainBuilder(identity(len(samples), 0 if config.policy == "none" else config.num_ops))
    drawn = stages.drawn
    drawn.flips[:] = draws.uniform(every) < config.flip_prob
    sample_erase_boxes(config, size, draws, drawn.boxes)
    for _ in range(drawn.kinds.shape[1]):
        if config.policy == "paper":
            sample_paper_policy(config.magnitude, draws, stages)
        else:
            sample_torchvision_policy(config.magnitude, draws, stages)
    return drawn


def sample_erase_boxes(config: AugmentConfig, size: int, draws: SampleRng, boxes: NDArray[np.int64]) -> None:
    """Random erasing (Zhong et al.): boxes of random area and aspect ratio, resampled a few times until they fit."""
    open_ = np.flatnonzero(draws.uniform(np.arange(len(boxes))) < config.erase_prob)
    for _ in range(ERASE_TRIES):
        area = size * size * draws.uniform(open_, *config.erase_scale)
        ratio = np.exp(draws.uniform(open_, math.log(ERASE_RATIO[0]), math.log(ERASE_RATIO[1])))
        height, width = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        fits = (height > 0) & (height < size) & (width > 0) & (width < size)
        rows, h, w = open_[fits], height[fits].astype(np.int64), width[fits].astype(np.int64)
        top = draws.integers(rows, size - h + 1)
        left = draws.integers(rows, size - w + 1)
        boxes[rows] = np.stack([top, left, top + h, left + w], axis=1)
        open_ = open_[~fits]
        if not len(open_):
            break


def sample_paper_policy(magnitude: float, draws: SampleRng, stages: OpChainBuilder) -> None:
    """Apply one round of the paper's policy: one of 15 operations, with probability 0.5 and a random level."""
    every = np.arange(stages.drawn.faces)
    chosen = draws.integers(every, len(PAPER_OPS))
    applied = draws.uniform(every) < APPLY_PROB
    levels = np.clip(magnitude + LEVEL_STD * draws.normal(every), 0.0, MAX_LEVEL)
    for number, operation in enumerate(PAPER_OPS):
        rows = np.flatnonzero((chosen == number) & applied)
        stages.add(operation, rows, levels[rows], draws)


def sample_torchvision_policy(magnitude: float, draws: SampleRng, stages: OpChainBuilder) -> None:
    """Apply one round of torchvision's RandAugment: one of 14 operations at bin `magnitude` of 31."""
    chosen = draws.integers(np.arange(stages.drawn.faces), len(TORCHVISION_OPS))
    strength = min(int(magnitude), STANDARD_BINS - 1) / (STANDARD_BINS - 1)
    for number, operation in enumerate(TORCHVISION_OPS):
        rows = np.flatnonzero(chosen == number)
        stages.add(operation, rows, np.full(len(rows), strength), draws)


class OpChainBuilder:
    """Builds lists of stages in normal form: consecutive warps become one warp (one interpolation), consecutive
    tables one table, consecutive saturations one saturation."""

    def __init__(self, drawn: AugmentationBatch) -> None:
        self.drawn = drawn
        self._lengths = np.zeros(drawn.faces, dtype=np.int64)

    def add(self, operation: Operation, rows: Rows, levels: Numbers, draws: SampleRng) -> None:
        """Append the operation to the lists of `rows`, each at its level."""
        if not len(rows) or operation.kind == OpKind.NOTHING:
            return
        if operation.signed:
            levels = draws.random_sign(rows, levels)
        kind = operation.kind
        made = operation.params_from_level(levels)
        lengths = self._lengths[rows]
        joins = np.zeros(len(rows), dtype=np.bool_)
        if kind in (OpKind.WARP, OpKind.TABLE, OpKind.COLOR):
            joins = (lengths > 0) & (self.drawn.kinds[rows, lengths - 1] == kind)
        places = rows, np.where(joins, lengths - 1, lengths)
        self.drawn.kinds[places] = kind
        self._lengths[rows] += ~joins
        match kind:
            case OpKind.WARP:
                joined = compose(self.drawn.matrices[places], made)
                self.drawn.matrices[places] = np.where(joins[:, None, None], joined, made)
            case OpKind.TABLE:
                joined = np.take_along_axis(made, self.drawn.tables[places].astype(np.int64), axis=1)
                self.drawn.tables[places] = np.where(joins[:, None], joined, made)
            case OpKind.COLOR:
                self.drawn.factors[places] = np.where(joins, self.drawn.factors[places], 1.0) * made
            case OpKind.CONTRAST | OpKind.SHARPNESS:
                self.drawn.factors[places] = made
