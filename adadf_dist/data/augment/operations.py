"""Operations of the two RandAugment policies; each maps the levels of many samples to parameters at once."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adadf_dist.data.augment.rng import Numbers

Matrices = NDArray[np.float64]
"""[n, 2, 3], one affine map per image: output position p gets the color at input position matrix @ (p, 1).

Positions are in unit coordinates."""
Tables = NDArray[np.uint8]
"""[n, 256], one lookup table for pixel values per image."""

VALUES = np.arange(256)


class OpKind(IntEnum):
    """Kind of an augmentation stage. Docstrings start with the `AugmentationBatch` field that stores the parameter."""

    NOTHING = 0
    WARP = 1
    """`matrices`: bilinear warp; output position p gets the color at input position matrix @ (p, 1), or `FILL` if that
    position is outside the image."""
    TABLE = 2
    """`tables`: replaces each channel's value v with table[v]."""
    COLOR = 3
    """`factors`: saturation; each value becomes luma + factor * (value - luma), rounded and clipped."""
    CONTRAST = 4
    """`factors`: each value becomes mean + factor * (value - mean), clipped; mean is the image's rounded mean luma."""
    AUTO_CONTRAST = 5
    """No parameter: stretches each channel linearly so that its lowest value becomes 0 and its highest 255."""
    EQUALIZE = 6
    """No parameter: equalizes each channel's histogram."""
    SHARPNESS = 7
    """`factors`: each value off the border becomes smooth + factor * (value - smooth), clipped; smooth is a 3x3 mean.

    smooth is the 3x3 mean with the center counted five times.
    """


class Operation(NamedTuple):
    """One operation of a RandAugment policy."""

    kind: OpKind
    params_from_level: Callable[[Numbers], NDArray[Any]] = lambda levels: levels
    """Maps levels [n] to matrices, tables or factors, depending on the kind."""
    signed: bool = False
    """Whether each level is first negated with probability 0.5."""


def affine(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Matrices:
    """Return n matrices [[a, b, c], [d, e, f]]; each argument is one number or an array of n numbers."""
    entries = np.broadcast_arrays(*(np.asarray(entry, dtype=np.float64) for entry in (a, b, c, d, e, f)))
    return np.stack(entries, axis=-1).reshape(-1, 2, 3)


def compose(first: Matrices, then: Matrices) -> Matrices:
    """Return warps with the same effect as applying `first`, then `then`."""
    linear = first[:, :, :2] @ then[:, :, :2]
    offset = first[:, :, :2] @ then[:, :, 2:] + first[:, :, 2:]
    return np.concatenate([linear, offset], axis=2)


def rotation(degrees: Numbers) -> Matrices:
    """Return warps that rotate the image counterclockwise about its center."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return affine(cos, -sin, 0.5 - 0.5 * cos + 0.5 * sin, sin, cos, 0.5 - 0.5 * sin - 0.5 * cos)


def shear_x(factor: Numbers) -> Matrices:
    return affine(1, factor, 0, 0, 1, 0)


def shear_y(factor: Numbers) -> Matrices:
    return affine(1, 0, 0, factor, 1, 0)


def translate_x(fraction: Numbers) -> Matrices:
    """Return warps that shift the image left by `fraction` of its width."""
    return affine(1, 0, fraction, 0, 1, 0)


def translate_y(fraction: Numbers) -> Matrices:
    return affine(1, 0, 0, 0, 1, fraction)


def rounded(values: NDArray[Any]) -> Tables:
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)


def invert(levels: Numbers) -> Tables:
    return rounded(np.broadcast_to(255 - VALUES, (len(levels), 256)))


def posterize(bits: Numbers) -> Tables:
    """Return tables that keep only the `bits` most significant bits of a value."""
    step = 2 ** (8 - bits.astype(np.int64))[:, None]
    return rounded(VALUES // step * step)


def solarize(threshold: Numbers) -> Tables:
    """Return tables that invert values of at least `threshold`."""
    return rounded(np.where(threshold[:, None] <= VALUES, 255 - VALUES, VALUES))


def solarize_add(addition: Numbers) -> Tables:
    """Return tables that add `addition` to values below 128."""
    return rounded(np.where(VALUES < 128, VALUES + addition[:, None], VALUES))


def brightness(factor: Numbers) -> Tables:
    return rounded(VALUES * factor[:, None])


def enhancement(level: Numbers) -> Numbers:
    return 0.1 + 0.18 * level


PAPER_OPS = (
    Operation(OpKind.AUTO_CONTRAST),
    Operation(OpKind.EQUALIZE),
    Operation(OpKind.TABLE, invert),
    Operation(OpKind.WARP, lambda m: rotation(3 * m), signed=True),
    Operation(OpKind.TABLE, lambda m: posterize(np.floor(0.4 * m))),
    Operation(OpKind.TABLE, lambda m: solarize(np.floor(25.6 * m))),
    Operation(OpKind.TABLE, lambda m: solarize_add(np.floor(11 * m))),
    Operation(OpKind.COLOR, enhancement),
    Operation(OpKind.CONTRAST, enhancement),
    Operation(OpKind.TABLE, lambda m: brightness(enhancement(m))),
    Operation(OpKind.SHARPNESS, enhancement),
    Operation(OpKind.WARP, lambda m: shear_x(0.03 * m), signed=True),
    Operation(OpKind.WARP, lambda m: shear_y(0.03 * m), signed=True),
    Operation(OpKind.WARP, lambda m: translate_x(0.045 * m), signed=True),
    Operation(OpKind.WARP, lambda m: translate_y(0.045 * m), signed=True),
)
"""Operations of the paper's policy; their level m is between 0 and 10."""

TORCHVISION_OPS = (
    Operation(OpKind.NOTHING),
    Operation(OpKind.WARP, lambda s: shear_x(0.3 * s), signed=True),
    Operation(OpKind.WARP, lambda s: shear_y(0.3 * s), signed=True),
    Operation(OpKind.WARP, lambda s: translate_x(150 / 331 * s), signed=True),
    Operation(OpKind.WARP, lambda s: translate_y(150 / 331 * s), signed=True),
    Operation(OpKind.WARP, lambda s: rotation(30 * s), signed=True),
    Operation(OpKind.TABLE, lambda s: brightness(1 + 0.9 * s), signed=True),
    Operation(OpKind.COLOR, lambda s: 1 + 0.9 * s, signed=True),
    Operation(OpKind.CONTRAST, lambda s: 1 + 0.9 * s, signed=True),
    Operation(OpKind.SHARPNESS, lambda s: 1 + 0.9 * s, signed=True),
    Operation(OpKind.TABLE, lambda s: posterize(8 - np.round(4 * s))),
    Operation(OpKind.TABLE, lambda s: solarize(255 * (1 - s))),
    Operation(OpKind.AUTO_CONTRAST),
    Operation(OpKind.EQUALIZE),
)
"""Operations of torchvision's policy; their strength s = bin / 30 is between 0 and 1."""
