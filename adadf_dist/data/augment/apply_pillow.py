"""Stages of `augment.py` applied to a Pillow image, in the worker processes of the CPU loader: the reference."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from adadf_dist.data.augment.operations import Kind
from adadf_dist.data.augment.policy import FILL, LUMA, Augmentations


def apply_stages(image: Image.Image, drawn: Augmentations, row: int) -> Image.Image:
    """The stages of one face on its RGB image, of any size."""
    for place, kind in enumerate(drawn.kinds[row]):
        match kind:
            case Kind.WARP:
                image = warp(image, drawn.matrices[row, place])
            case Kind.TABLE:
                image = look_up(image, drawn.tables[row, place])
            case Kind.COLOR:
                image = saturate(image, drawn.factors[row, place])
            case Kind.CONTRAST:
                image = ImageEnhance.Contrast(image).enhance(drawn.factors[row, place])
            case Kind.AUTO_CONTRAST:
                image = ImageOps.autocontrast(image)
            case Kind.EQUALIZE:
                image = ImageOps.equalize(image)
            case Kind.SHARPNESS:
                image = ImageEnhance.Sharpness(image).enhance(drawn.factors[row, place])
    return image


def warp(image: Image.Image, matrix: NDArray[np.float64]) -> Image.Image:
    """Pillow's matrix maps output to input positions too, but in pixels."""
    width, height = image.size
    (a, b, c), (d, e, f) = matrix.tolist()
    pixels = (a, b * width / height, c * width, d * height / width, e, f * height)
    return image.transform(image.size, Image.Transform.AFFINE, pixels, Image.Resampling.BILINEAR, fillcolor=FILL)


def look_up(image: Image.Image, table: NDArray[np.uint8]) -> Image.Image:
    return image.point(table.tolist() * 3)


def saturate(image: Image.Image, factor: float) -> Image.Image:
    """Pillow's 3x4 matrix of luma + factor (value - luma); it rounds where Pillow's own enhancement truncates."""
    rows = []
    for channel in range(3):
        row = [(1 - factor) * weight for weight in LUMA]
        row[channel] += factor
        rows += [*row, 0.0]
    return image.convert("RGB", tuple(rows))
