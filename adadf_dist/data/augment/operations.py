"""Operations of both RandAugment policies, mapping levels to parameters for many samples at once."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adadf_dist.data.augment.rng import Numbers

Matrices = NDArray[np.float64]
"""[n, 2, 3], unit coordinates: the output at p is the input at matrix (p, 1)."""
Tables = NDArray[np.uint8]
"""[n, 256]"""

VALUES = np.arange(256)


class OpKind(IntEnum):
    """Kind of stage. Its parameter is in the named array of `AugmentationBatch`."""

    NOTHING = 0
    WARP = 1
    """`matrices`. Bilinear warp: the output at p is the input at matrix (p, 1); FILL outside the image."""
    TABLE = 2
    """`tables`. Maps each channel's value v to table[v]."""
    COLOR = 3
    """`factors`. Saturation: luma + factor (value - luma), rounded and clipped."""
    CONTRAST = 4
    """`factors`. mean + factor (value - mean), clipped; mean is the image's mean luma, rounded."""
    AUTO_CONTRAST = 5
    """Maps each channel's lowest value to 0 and its highest to 255, linearly."""
    EQUALIZE = 6
    """Equalizes each channel's histogram."""
    SHARPNESS = 7
    """`factors`. smooth + factor (value - smooth), clipped; smooth is the 3x3 mean with the center counted five times,
    and on the border the value itself."""


class Operation(NamedTuple):
    """One operation of a policy."""

    kind: OpKind
    params_from_level: Callable[[Numbers], NDArray[Any]] = lambda levels: levels
    """Maps levels [n] to matrices, tables or factors, depending on the kind."""
    signed: bool = False
    """Whether half of the levels are negated first."""


def affine(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Matrices:
    """Return [[a, b, c], [d, e, f]]; each entry is a number or n of them."""
    entries = np.broadcast_arrays(*(np.asarray(entry, dtype=np.float64) for entry in (a, b, c, d, e, f)))
    return np.stack(entries, axis=-1).reshape(-1, 2, 3)


def compose(first: Matrices, then: Matrices) -> Matrices:
    """Compose two warps into one: `first`, then `then`; the output maps back through both."""
    linear = first[:, :, :2] @ then[:, :, :2]
    offset = first[:, :, :2] @ then[:, :, 2:] + first[:, :, 2:]
    return np.concatenate([linear, offset], axis=2)


def rotation(degrees: Numbers) -> Matrices:
    """Rotate counterclockwise about the center."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return affine(cos, -sin, 0.5 - 0.5 * cos + 0.5 * sin, sin, cos, 0.5 - 0.5 * sin - 0.5 * cos)


def shear_x(factor: Numbers) -> Matrices:
    return affine(1, factor, 0, 0, 1, 0)


def shear_y(factor: Numbers) -> Matrices:
    return affine(1, 0, 0, factor, 1, 0)


def translate_x(fraction: Numbers) -> Matrices:
    """Shift left by `fraction` of the side: the output shows the input `fraction` further right."""
    return affine(1, 0, fraction, 0, 1, 0)


def translate_y(fraction: Numbers) -> Matrices:
    return affine(1, 0, 0, 0, 1, fraction)


def rounded(values: NDArray[Any]) -> Tables:
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)


def invert(levels: Numbers) -> Tables:
    return rounded(np.broadcast_to(255 - VALUES, (len(levels), 256)))


def posterize(bits: Numbers) -> Tables:
    """Keep the highest `bits` bits."""
    step = 2 ** (8 - bits.astype(np.int64))[:, None]
    return rounded(VALUES // step * step)


def solarize(threshold: Numbers) -> Tables:
    """Invert values of at least `threshold`."""
    return rounded(np.where(threshold[:, None] <= VALUES, 255 - VALUES, VALUES))


def solarize_add(addition: Numbers) -> Tables:
    """Add to values below 128."""
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
"""Operations by level m from 0 to 10."""

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
"""Operations by strength s from 0 to 1: bin / 30."""
