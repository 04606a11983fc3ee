"""Augmentation on the CPU with functions compiled by numba. Each image goes through all stages while in the CPU cache.

The functions release the GIL, so threads run in parallel. Arithmetic and rounding follow the reference, Pillow.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adadf_dist.data.augment.compiled import compiled
from adadf_dist.data.augment.operations import OpKind
from adadf_dist.data.augment.policy import FILL, LUMA, AugmentationBatch

Image = NDArray[np.uint8]
"""RGB pixels, [H, W, 3]."""

WARP, TABLE, COLOR, CONTRAST = int(OpKind.WARP), int(OpKind.TABLE), int(OpKind.COLOR), int(OpKind.CONTRAST)
AUTO_CONTRAST, EQUALIZE, SHARPNESS = int(OpKind.AUTO_CONTRAST), int(OpKind.EQUALIZE), int(OpKind.SHARPNESS)
RED, GREEN, BLUE = LUMA
LUMA_16 = (19595, 38470, 7471)
"""`LUMA` in units of 1/65,536: the weights with which Pillow converts RGB to grayscale."""


def apply_stages(images: NDArray[np.uint8], batch: AugmentationBatch) -> None:
    """Augment `images` [n, H, W, 3] in place by applying each sample's stages and flip."""
    run(images, *batch[:5])


@compiled
def run(
    images: NDArray[np.uint8],
    kinds: NDArray[np.int8],
    matrices: NDArray[np.float64],
    tables: NDArray[np.uint8],
    factors: NDArray[np.float64],
    flips: NDArray[np.bool_],
) -> None:
    scratch = np.empty_like(images[0])
    lookups = np.empty((3, 256), dtype=np.uint8)
    for row in range(len(images)):
        image = images[row]
        for stage in range(kinds.shape[1]):
            kind = kinds[row, stage]
            if kind == WARP:
                scratch[:] = image
                warp(scratch, matrices[row, stage], image)
            elif kind == COLOR:
                adjust_saturation(image, factors[row, stage])
            elif kind == SHARPNESS:
                scratch[:] = image
                sharpen(scratch, factors[row, stage], image)
            elif kind != 0:
                if kind == TABLE:
                    for channel in range(3):
                        lookups[channel] = tables[row, stage]
                elif kind == CONTRAST:
                    contrast(image, factors[row, stage], lookups)
                elif kind == AUTO_CONTRAST:
                    auto_contrast(image, lookups)
                elif kind == EQUALIZE:
                    equalize(image, lookups)
                apply_lut(image, lookups)
        if flips[row]:
            flip(image)


@compiled
def warp(image: Image, matrix: NDArray[np.float64], out: Image) -> None:
    height, width = image.shape[:2]
    half = np.float32(0.5)
    step_x, step_y = np.float32(matrix[0, 0]), np.float32(matrix[1, 0] * height / width)
    for i in range(height):
        y = (i + 0.5) / height
        start_x = np.float32((matrix[0, 1] * y + matrix[0, 2]) * width)
        start_y = np.float32((matrix[1, 1] * y + matrix[1, 2]) * height)
        for j in range(width):
            x = start_x + step_x * (np.float32(j) + half)
            y = start_y + step_y * (np.float32(j) + half)
            if x < 0 or y < 0 or x >= width or y >= height:
                out[i, j, 0], out[i, j, 1], out[i, j, 2] = FILL
                continue
            column, row = int(x + half), int(y + half)
            right_weight, lower_weight = x + half - np.float32(column), y + half - np.float32(row)
            # unsigned: numba checks signed indices for negative values
            left, top = np.uintp(max(column - 1, 0)), np.uintp(max(row - 1, 0))
            right, bottom = np.uintp(min(column, width - 1)), np.uintp(min(row, height - 1))
            for c in range(3):
                a, b = np.float32(image[top, left, c]), np.float32(image[top, right, c])
                d, e = np.float32(image[bottom, left, c]), np.float32(image[bottom, right, c])
                upper, lower = a + (b - a) * right_weight, d + (e - d) * right_weight
                out[i, j, c] = np.uint8(upper + (lower - upper) * lower_weight)


@compiled
def apply_lut(image: Image, tables: NDArray[np.uint8]) -> None:
    height, width = image.shape[:2]
    for i in range(height):
        for j in range(width):
            for c in range(3):
                image[i, j, c] = tables[c, image[i, j, c]]


@compiled
def clip(value: float) -> int:
    return np.uint8(min(max(value, 0.0), 255.0))  # type: ignore[return-value]


@compiled
def adjust_saturation(image: Image, factor: float) -> None:
    height, width = image.shape[:2]
    for i in range(height):
        for j in range(width):
            gray = RED * image[i, j, 0] + GREEN * image[i, j, 1] + BLUE * image[i, j, 2]
            for c in range(3):
                image[i, j, c] = clip(gray + factor * (image[i, j, c] - gray) + 0.5)


@compiled
def contrast(image: Image, factor: float, tables: NDArray[np.uint8]) -> None:
    height, width = image.shape[:2]
    total = np.int64(0)
    for i in range(height):
        for j in range(width):
            r, g, b = np.int64(image[i, j, 0]), np.int64(image[i, j, 1]), np.int64(image[i, j, 2])
            total += (LUMA_16[0] * r + LUMA_16[1] * g + LUMA_16[2] * b + 32768) >> 16
    mean = math.floor(total / (height * width) + 0.5)
    for value in range(256):
        tables[:, value] = clip(mean + factor * (value - mean))


@compiled
def channel_histograms(image: Image) -> NDArray[np.int64]:
    """Return the histogram of each color channel, [3, 256]."""
    counts = np.zeros((3, 256), dtype=np.int64)
    height, width = image.shape[:2]
    for i in range(height):
        for j in range(width):
            for c in range(3):
                counts[c, image[i, j, c]] += 1
    return counts


@compiled
def auto_contrast(image: Image, tables: NDArray[np.uint8]) -> None:
    counts = channel_histograms(image)
    for c in range(3):
        low, high = 0, 255
        while counts[c, low] == 0:
            low += 1
        while counts[c, high] == 0:
            high -= 1
        scale = 255.0 / max(high - low, 1)
        for value in range(256):
            tables[c, value] = clip(value * scale - low * scale) if high > low else value


@compiled
def equalize(image: Image, tables: NDArray[np.uint8]) -> None:
    counts = channel_histograms(image)
    pixels = image.shape[0] * image.shape[1]
    for c in range(3):
        high = 255
        while counts[c, high] == 0:
            high -= 1
        step = (pixels - counts[c, high]) // 255
        below = step // 2
        for value in range(256):
            tables[c, value] = min(below // step, 255) if step > 0 else value
            below += counts[c, value]


@compiled
def sharpen(image: Image, factor: float, out: Image) -> None:
    height, width = image.shape[:2]
    for i in range(1, height - 1):
        for j in range(1, width - 1):
            for c in range(3):
                value = np.int32(image[i, j, c])
                total: Any = 4 * value
                for k in (i - 1, i, i + 1):
                    total += np.int32(image[k, j - 1, c]) + np.int32(image[k, j, c]) + np.int32(image[k, j + 1, c])
                smooth = (2 * total + 13) // 26  # a 13th, rounded
                out[i, j, c] = clip(smooth + np.float32(factor) * (value - smooth))


@compiled
def flip(image: Image) -> None:
    height, width = image.shape[:2]
    for i in range(height):
        for j in range(width // 2):
            for c in range(3):
                other = width - 1 - j
                image[i, j, c], image[i, other, c] = image[i, other, c], image[i, j, c]


@compiled
def normalize_and_erase(
    images: NDArray[np.uint8],
    normalized: NDArray[np.float32],
    boxes: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    """Normalize images [n, H, W, 3], erase `boxes`, and write the result to `out` [n, 3, H, W].

    `normalized` [3, 256] contains the normalized value of each pixel value, by channel.
    """
    n, height, width = images.shape[:3]
    for row in range(n):
        for i in range(height):
            for j in range(width):
                for c in range(3):
                    out[row, c, i, j] = normalized[c, images[row, i, j, c]]
        top, left, bottom, right = boxes[row]
        out[row, :, top:bottom, left:right] = 0.0
