"""Arithmetic on whole images: colors, soft shapes, and the effects of a camera."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Plane = NDArray[np.floating[Any]]
"""[size, size], one float32 number per pixel."""
Color = NDArray[np.floating[Any]]
"""RGB values from 0 to 1: one color, [3, 1, 1], or one per pixel, [3, size, size]."""


def camera_effects(pixels: Color, appearance: Mapping[str, float], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Apply a camera's white balance, exposure, blur and grain to [3, size, size] RGB; return [size, size, 3] bytes."""
    warm, size = appearance["light_warmth"], pixels.shape[1]
    exposed = np.clip(pixels * (rgb(1 + 0.09 * warm, 1, 1 - 0.11 * warm) * appearance["exposure"]), 0, 1)
    image = Image.fromarray((exposed * 255).astype(np.uint8).transpose(1, 2, 0).copy())
    if appearance["blur"] > 0.5:
        image = image.filter(ImageFilter.GaussianBlur((appearance["blur"] - 0.5) * size / 40))
    grain = rng.standard_normal((size, size, 3), np.float32) * (9 * appearance["noise"] ** 2)
    levels: NDArray[np.uint8] = np.clip(np.asarray(image) + grain + 0.5, 0, 255).astype(np.uint8)
    return levels


def rgb(red: float, green: float, blue: float) -> Color:
    return np.array([red, green, blue], np.float32).reshape(3, 1, 1)


def hue_color(turn: float, level: float, chroma: float) -> Color:
    """Return a color of the color wheel, [3, 1, 1], at `turn` full turns."""
    return rgb(*(level + chroma * math.cos(2 * math.pi * (turn + third / 3)) for third in range(3)))


def gradient_color(stops: Sequence[int], position: float) -> Color:
    """Return the color, [3, 1, 1], at `position` (0 to 1) along a gradient through the 0xRRGGBB colors `stops`."""
    at = np.linspace(0, 1, len(stops))
    return rgb(*(np.interp(position, at, [stop >> shift & 255 for stop in stops]) / 255 for shift in (16, 8, 0)))


def norm(across: Plane, down: Plane) -> Plane:
    """Return the length of a vector at each pixel, ten times faster than `np.hypot`."""
    length: Plane = np.sqrt(across * across + down * down)
    return length


def gaussian(distance: Plane, width: Plane | float) -> Plane:
    """Return a Gaussian that is 1 at distance 0 and 1/e at distance `width`."""
    height: Plane = np.exp(-np.square(distance / width))
    return height


def smoothstep(t: Any) -> Any:
    """Return a smooth step that is 0 for `t` below 0, 1 for `t` above 1, and rises in between."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def stripes(t: Plane, period: float) -> Plane:
    """Return a pattern of thin ridges of height 1, one per period."""
    ridges: Plane = np.square(np.square(np.maximum(np.cos(2 * np.pi / period * t), 0)))
    return ridges
