"""Stages of `augment.py` applied to a Pillow image, in the worker processes of the CPU loader."""

from __future__ import annotations

from PIL import Image, ImageEnhance, ImageOps

from adadf_dist.data.augment import (
    FILL,
    LUMA,
    AutoContrast,
    Color,
    Contrast,
    Equalize,
    Sharpness,
    Stage,
    Table,
    Warp,
)


def apply_stage(image: Image.Image, stage: Stage) -> Image.Image:
    """One stage on an RGB image, of any size."""
    match stage:
        case Warp():
            return warp(image, stage)
        case Table(values):
            return image.point(values.tolist() * 3)
        case Color(factor):
            return image.convert("RGB", saturation_matrix(factor))
        case Contrast(factor):
            return ImageEnhance.Contrast(image).enhance(factor)
        case AutoContrast():
            return ImageOps.autocontrast(image)
        case Equalize():
            return ImageOps.equalize(image)
        case Sharpness(factor):
            return ImageEnhance.Sharpness(image).enhance(factor)


def warp(image: Image.Image, stage: Warp) -> Image.Image:
    """Pillow's matrix maps output to input positions too, but in pixels."""
    width, height = image.size
    (a, b, c), (d, e, f) = stage.matrix.tolist()
    pixels = (a, b * width / height, c * width, d * height / width, e, f * height)
    return image.transform(image.size, Image.Transform.AFFINE, pixels, Image.Resampling.BILINEAR, fillcolor=FILL)


def saturation_matrix(factor: float) -> tuple[float, ...]:
    """Pillow's 3x4 matrix of luma + factor (value - luma); the half rounds where Pillow truncates."""
    rows = []
    for channel in range(3):
        row = [(1 - factor) * weight for weight in LUMA]
        row[channel] += factor
        rows += [*row, 0.0]
    return tuple(rows)
