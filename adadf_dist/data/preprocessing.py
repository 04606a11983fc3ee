"""Preprocessing from stored image to network input, saved in checkpoints and exported models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """Settings for preprocessing: resize to a square, scale to [0, 1], subtract the RGB mean and divide by the std."""

    image_size: int
    classes: tuple[str, ...]
    """Class names in logit order."""
    loader: str
    """Loader that decoded and resized the images in training: `torch` or `dali`."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    kernel: str = "bilinear, antialiased"
    ten_crop: int = 0
    """If nonzero, images are resized to a square with this side in pixels, and ten crops of `image_size` are taken."""

    @property
    def resized(self) -> int:
        """Side in pixels of the square to which stored images are resized."""
        return self.ten_crop or self.image_size

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-serializable values."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Preprocessing:
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return Preprocessing(**fields)


def ten_crop(images: Tensor, size: int) -> Tensor:
    """Crop the corners and center of each image and its mirror image: [n, 3, S, S] becomes [n, 10, 3, size, size]."""
    end = images.shape[-1] - size
    middle = round(end / 2)
    corners = [(0, 0), (0, end), (end, 0), (end, end), (middle, middle)]
    both = (images, images.flip(-1))
    return torch.stack([v[..., top : top + size, left : left + size] for v in both for top, left in corners], dim=1)
