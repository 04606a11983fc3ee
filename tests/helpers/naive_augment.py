"""Augmentation draws, one sample and one number at a time: the naive twin of `data/augment/policy.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from adadf_dist.config.schema import AugmentConfig

MAX_LEVEL = 10.0
LEVEL_STD = 0.5
APPLY = 0.5
ERASE_RATIO = (0.3, 3.3)
ERASE_TRIES = 10
STANDARD_BINS = 31


class Stage(NamedTuple):
    """`kind` is the name of a `Kind`; `value` its matrix, table or factor."""

    kind: str
    value: NDArray[np.float64] | NDArray[np.uint8] | float | None = None


Box = tuple[int, int, int, int]
NO_BOX = (0, 0, 0, 0)


class Augmentation(NamedTuple):
    stages: tuple[Stage, ...]
    flip: bool
    erase: Box


class Draws:
    """A stream of random numbers that belongs to one (seed, epoch, sample) and nothing else.

    Counter-based: no state is carried from face to face, whoever decodes it.
    """

    def __init__(self, seed: int, epoch: int, sample: int) -> None:
        key = np.array([seed, (epoch << 40) | sample], dtype=np.uint64)
        self._random = np.random.Generator(np.random.Philox(key=key))
        self._ready: list[float] = []

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        if not self._ready:  # many at once: a call into numpy costs more than the numbers
            self._ready = self._random.random(64).tolist()[::-1]
        return low + (high - low) * self._ready.pop()

    def below(self, number: int) -> int:
        """A whole number from 0 to `number` - 1."""
        return min(int(self.uniform() * number), number - 1)

    def normal(self) -> float:
        """Standard normal, by Box and Muller."""
        radius = math.sqrt(-2 * math.log(1 - self.uniform()))
        return radius * math.cos(2 * math.pi * self.uniform())

    def sign(self, value: float) -> float:
        return value if self.uniform() < 0.5 else -value


def draw(config: AugmentConfig, size: int, seed: int, epoch: int, sample: int) -> Augmentation:
    """The augmentation of a training face. Pure.

    Args:
        size: side of the network's input in pixels, in which the erasing box is given.
        epoch: counted from 0.
        sample: number within the split.
    """
    draws = Draws(seed, epoch, sample)
    flip = draws.uniform() < config.flip_prob
    erase = draw_box(config, size, draws)
    operate = {"none": None, "paper": draw_published, "torchvision": draw_standard}[config.policy]
    stages = [] if operate is None else [s for _ in range(config.num_ops) for s in operate(config.magnitude, draws)]
    return Augmentation(normal_form(stages), flip, erase)


def draw_box(config: AugmentConfig, size: int, draws: Draws) -> Box:
    """Random erasing (Zhong et al.): a box of random area and aspect, redrawn until it fits."""
    if draws.uniform() >= config.erase_prob:
        return NO_BOX
    for _ in range(ERASE_TRIES):
        area = size * size * draws.uniform(*config.erase_scale)
        ratio = math.exp(draws.uniform(math.log(ERASE_RATIO[0]), math.log(ERASE_RATIO[1])))
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < height < size and 0 < width < size:
            top, left = draws.below(size - height + 1), draws.below(size - width + 1)
            return (top, left, top + height, left + width)
    return NO_BOX


def draw_published(magnitude: float, draws: Draws) -> list[Stage]:
    """One draw of the paper's policy: one of 15 operations, applied with probability 0.5, at a varying level."""
    operation = PUBLISHED[draws.below(len(PUBLISHED))]
    applied = draws.uniform() < APPLY
    level = min(max(magnitude + LEVEL_STD * draws.normal(), 0.0), MAX_LEVEL)
    return [operation(level, draws)] if applied else []


def draw_standard(magnitude: float, draws: Draws) -> list[Stage]:
    """One draw of torchvision's RandAugment: one of 14 operations at bin `magnitude` of 31."""
    operation = STANDARD[draws.below(len(STANDARD))]
    stage = operation(min(int(magnitude), STANDARD_BINS - 1) / (STANDARD_BINS - 1), draws)
    return [] if stage is None else [stage]


def normal_form(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    joined: list[Stage] = []
    for stage in stages:
        before = joined[-1] if joined else Stage("")
        if stage.kind == before.kind == "WARP":
            joined[-1] = Stage("WARP", compose(before.value, stage.value))
        elif stage.kind == before.kind == "TABLE":
            joined[-1] = Stage("TABLE", stage.value[before.value])
        elif stage.kind == before.kind == "COLOR":
            joined[-1] = Stage("COLOR", before.value * stage.value)
        else:
            joined.append(stage)
    return tuple(joined)


def compose(first: NDArray[np.float64], then: NDArray[np.float64]) -> NDArray[np.float64]:
    """The warp matrix [2, 3] of warping by `first` and the result by `then`: the output looks back through both."""
    linear = first[:, :2] @ then[:, :2]
    offset = first[:, :2] @ then[:, 2] + first[:, 2]
    return np.column_stack([linear, offset])


def affine(a: float, b: float, c: float, d: float, e: float, f: float) -> Stage:
    return Stage("WARP", np.array([[a, b, c], [d, e, f]]))


def rotation(degrees: float) -> Stage:
    """Counter-clockwise about the center."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return affine(cos, -sin, 0.5 - 0.5 * cos + 0.5 * sin, sin, cos, 0.5 - 0.5 * sin - 0.5 * cos)


def shear_x(factor: float) -> Stage:
    return affine(1, factor, 0, 0, 1, 0)


def shear_y(factor: float) -> Stage:
    return affine(1, 0, 0, factor, 1, 0)


def translate_x(share: float) -> Stage:
    """The output shows what stood `share` of the side further right."""
    return affine(1, 0, share, 0, 1, 0)


def translate_y(share: float) -> Stage:
    return affine(1, 0, 0, 0, 1, share)


VALUES = np.arange(256)


def table(values: NDArray[np.floating] | NDArray[np.integer]) -> Stage:
    return Stage("TABLE", np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8))


def invert() -> Stage:
    return table(255 - VALUES)


def posterize(bits: int) -> Stage:
    """Keep the highest `bits` bits."""
    return table(VALUES & ~(2 ** (8 - bits) - 1))


def solarize(threshold: float) -> Stage:
    """Invert values of at least `threshold`."""
    return table(np.where(threshold <= VALUES, 255 - VALUES, VALUES))


def solarize_add(addition: int) -> Stage:
    """Add to values below 128."""
    return table(np.where(VALUES < 128, VALUES + addition, VALUES))


def brightness(factor: float) -> Stage:
    return table(VALUES * factor)


PUBLISHED: tuple[Callable[[float, Draws], Stage], ...] = (
    lambda m, d: Stage("AUTO_CONTRAST"),
    lambda m, d: Stage("EQUALIZE"),
    lambda m, d: invert(),
    lambda m, d: rotation(d.sign(3 * m)),
    lambda m, d: posterize(math.floor(0.4 * m)),
    lambda m, d: solarize(math.floor(25.6 * m)),
    lambda m, d: solarize_add(math.floor(11 * m)),
    lambda m, d: Stage("COLOR", 0.1 + 0.18 * m),
    lambda m, d: Stage("CONTRAST", 0.1 + 0.18 * m),
    lambda m, d: brightness(0.1 + 0.18 * m),
    lambda m, d: Stage("SHARPNESS", 0.1 + 0.18 * m),
    lambda m, d: shear_x(d.sign(0.03 * m)),
    lambda m, d: shear_y(d.sign(0.03 * m)),
    lambda m, d: translate_x(d.sign(0.045 * m)),
    lambda m, d: translate_y(d.sign(0.045 * m)),
)
"""By level m from 0 to 10."""

STANDARD: tuple[Callable[[float, Draws], Stage | None], ...] = (
    lambda s, d: None,
    lambda s, d: shear_x(d.sign(0.3 * s)),
    lambda s, d: shear_y(d.sign(0.3 * s)),
    lambda s, d: translate_x(d.sign(150 / 331 * s)),
    lambda s, d: translate_y(d.sign(150 / 331 * s)),
    lambda s, d: rotation(d.sign(30 * s)),
    lambda s, d: brightness(1 + d.sign(0.9 * s)),
    lambda s, d: Stage("COLOR", 1 + d.sign(0.9 * s)),
    lambda s, d: Stage("CONTRAST", 1 + d.sign(0.9 * s)),
    lambda s, d: Stage("SHARPNESS", 1 + d.sign(0.9 * s)),
    lambda s, d: posterize(8 - round(4 * s)),
    lambda s, d: solarize(255 * (1 - s)),
    lambda s, d: Stage("AUTO_CONTRAST"),
    lambda s, d: Stage("EQUALIZE"),
)
"""By strength s from 0 to 1: bin / 30."""
