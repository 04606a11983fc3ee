"""Reference implementation of augmentation, with Pillow; used by the worker processes of the torch loader."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from adadf_dist.data.augment.operations import OpKind
from adadf_dist.data.augment.policy import FILL, LUMA, AugmentationBatch


def apply_stages(image: Image.Image, batch: AugmentationBatch, row: int) -> Image.Image:
    """Apply the stages in row `row` of `batch` to an RGB image of any size."""
    for stage, kind in enumerate(batch.kinds[row]):
        match kind:
            case OpKind.WARP:
                image = warp(image, batch.matrices[row, stage])
            case OpKind.TABLE:
                image = apply_lut(image, batch.tables[row, stage])
            case OpKind.COLOR:
                image = adjust_saturation(image, batch.factors[row, stage])
            case OpKind.CONTRAST:
                image = ImageEnhance.Contrast(image).enhance(batch.factors[row, stage])
            case OpKind.AUTO_CONTRAST:
                image = ImageOps.autocontrast(image)
            case OpKind.EQUALIZE:
                image = ImageOps.equalize(image)
            case OpKind.SHARPNESS:
                image = ImageEnhance.Sharpness(image).enhance(batch.factors[row, stage])
    return image


def warp(image: Image.Image, matrix: NDArray[np.float64]) -> Image.Image:
    """Warp an image by an affine matrix in unit coordinates, converted to the pixel coordinates that Pillow uses."""
    width, height = image.size
    (a, b, c), (d, e, f) = matrix.tolist()
    pixels = (a, b * width / height, c * width, d * height / width, e, f * height)
    return image.transform(image.size, Image.Transform.AFFINE, pixels, Image.Resampling.BILINEAR, fillcolor=FILL)


def apply_lut(image: Image.Image, table: NDArray[np.uint8]) -> Image.Image:
    return image.point(table.tolist() * 3)


def adjust_saturation(image: Image.Image, factor: float) -> Image.Image:
    """Scale the saturation with a color matrix, because Pillow's `ImageEnhance.Color` truncates instead of rounding."""
    rows = []
    for channel in range(3):
        row = [(1 - factor) * weight for weight in LUMA]
        row[channel] += factor
        rows += [*row, 0.0]
    return image.convert("RGB", tuple(rows))
