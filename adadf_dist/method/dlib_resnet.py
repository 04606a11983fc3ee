"""The residual network of dlib's face recognition (dnn_face_recognition_resnet_model_v1), without its last layer.

It has 29 convolutions, and no BatchNorm: each convolution is followed by a learned scale and offset per channel.
Convolutions of stride 2 are not padded, so their maps can be one row and one column smaller than the pooled shortcut;
the smaller side of a sum is extended with zeros at the end.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGES = {"conv32": (32, 3), "conv64": (64, 4), "conv128": (128, 3), "conv256": (256, 3), "conv256_out": (256, 1)}
"""Stage name -> (channels, number of blocks). The first block of each stage but conv32 halves the resolution."""
NUM_FEATURES = STAGES["conv256_out"][0]
SHARE_ALL = "all"
"""Value of `model.shared_until` with which the whole network is shared, and each branch has only a `FeatureHead`."""
POOL_GRIDS = {"conv32": 4, "conv64": 4, "conv128": 4, "conv256": 4, "conv256_out": 2}
"""Stage name -> side of the grid to which `MultiStagePool` pools its maps."""
NUM_POOLED = sum(STAGES[name][0] * side**2 for name, side in POOL_GRIDS.items())
"""Number of values that `MultiStagePool` returns per image."""
HEAD_FEATURES = 512
MIN_IMAGE_SIZE = 55
"""Below it, the maps before the last two stages are smaller than a convolution. The weights were trained on 150."""
KERNEL = 3


class Affine(nn.Module):
    """Multiply each channel of maps [n, K, h, w] by a weight and add a bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, maps: Tensor) -> Tensor:
        return maps * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


class Block(nn.Module):
    """Residual block of two 3x3 convolutions: maps [n, K, h, w] -> [n, outputs, h, w], or h//2, w//2 with `halve`."""

    def __init__(self, inputs: int, outputs: int, halve: bool) -> None:
        super().__init__()
        stride, padding = (2, 0) if halve else (1, 1)
        self.conv1 = nn.Conv2d(inputs, outputs, KERNEL, stride, padding)
        self.affine1 = Affine(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, KERNEL, padding=1)
        self.affine2 = Affine(outputs)
        self.halve = halve

    def forward(self, maps: Tensor) -> Tensor:
        if not self.halve:
            return F.relu(self.residual(maps) + maps)
        # only the last stage, for images below 103 pixels; dlib's network does not support them
        maps = extend(maps, maps.shape[1], max(KERNEL, maps.shape[2]), max(KERNEL, maps.shape[3]))
        residual, shortcut = self.residual(maps), F.avg_pool2d(maps, 2)
        size = residual.shape[1], shortcut.shape[2], shortcut.shape[3]
        return F.relu(extend(residual, *size) + extend(shortcut, *size))

    def residual(self, maps: Tensor) -> Tensor:
        inner = F.relu(self.affine1(self.conv1(maps)))
        outer: Tensor = self.affine2(self.conv2(inner))
        return outer


def extend(maps: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Extend maps [n, K, h, w] to [n, channels, height, width] with zeros at the end of each dimension."""
    missing = (width - maps.shape[3], height - maps.shape[2], channels - maps.shape[1])
    if not any(missing):  # padding by nothing would copy
        return maps
    return F.pad(maps, (0, missing[0], 0, missing[1], 0, missing[2]))


def build_units() -> dict[str, nn.Module]:
    """Build `stem` and the stages with random weights. In sequence: images [n, 3, H, W] -> maps [n, 256, h, w]."""
    stem = nn.Sequential()
    stem.add_module("conv", nn.Conv2d(3, STAGES["conv32"][0], 7, stride=2))
    stem.add_module("affine", Affine(STAGES["conv32"][0]))
    stem.add_module("relu", nn.ReLU())
    stem.add_module("pool", nn.MaxPool2d(3, stride=2))
    units: dict[str, nn.Module] = {"stem": stem}
    inputs = STAGES["conv32"][0]
    for name, (channels, count) in STAGES.items():
        blocks = [Block(channels, channels, halve=False) for _ in range(count - 1)]
        first = Block(inputs, channels, halve=name != "conv32")
        units[name] = nn.Sequential(first, *blocks)
        inputs = channels
    return units


class MultiStagePool(nn.Module):
    """The whole network as an extractor: images [n, 3, H, W] -> [n, `NUM_POOLED`], the pooled maps of every stage."""

    def __init__(self, units: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, unit in units.items():
            self.add_module(name, unit)

    def forward(self, images: Tensor) -> Tensor:
        maps, pooled = images, []
        for name, unit in self.named_children():
            maps = unit(maps)
            if name in POOL_GRIDS:
                pooled.append(F.adaptive_avg_pool2d(maps, POOL_GRIDS[name]).flatten(1))
        return torch.cat(pooled, dim=1)


class FeatureHead(nn.Sequential):
    """Branch of a fully shared network: pooled maps [n, `NUM_POOLED`] -> features [n, `HEAD_FEATURES`].

    It always starts with random weights. There is no dropout, because its masks would depend on the number of ranks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.add_module("norm", nn.LayerNorm(NUM_POOLED))
        self.add_module("linear", nn.Linear(NUM_POOLED, HEAD_FEATURES))
        self.add_module("relu", nn.ReLU())
