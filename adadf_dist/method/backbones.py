"""A backbone cut in two: the extractor that both branches share, and the stages that each has for itself.

The parts keep the backbone's own names for their parameters, so that its pretrained files fit them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module

import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from adadf_dist.config.backbone_names import TIMM
from adadf_dist.config.schema import ModelConfig
from adadf_dist.errors import UserError, did_you_mean

TIMM_BACKBONES = "adadf_dist.method.timm_backbones"
"""Imported where it is wanted: it takes timm, which not everyone has."""

Units = Mapping[str, nn.Module]
"""What a network computes, one after the other, by its own dotted names: `stem`, `stages.0`, `stages.1`, ..."""


@dataclass(frozen=True)
class Backbone:
    """Images [n, 3, H, W] -> extractor -> stages -> pool -> features [n, F]."""

    extractor: nn.Module
    """Its output is what both branches take: feature maps, or tokens."""
    stages: nn.Module
    pool: nn.Module
    """From the last stage's maps or tokens to features [n, F]."""
    num_features: int


def build_backbone(config: ModelConfig, image_size: int) -> Backbone:
    """The backbone of `model.backbone` with random weights, cut after `model.split`.

    Raises `UserError` for a split that it does not have, and where timm's network cannot be cut or does not take
    images of this size.
    """
    if config.backbone.startswith(TIMM):
        backbone: Backbone = import_module(TIMM_BACKBONES).build(config, image_size)
        return backbone
    resnet = build_resnet(config.backbone)
    names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    units = {name: getattr(resnet, name) for name in names}
    extractor, stages = split_at(units, find_split(config, ["layer1", "layer2", "layer3"], "layer1"))
    return Backbone(extractor, stages, GlobalAveragePool(), resnet.fc.in_features)


def build_resnet(name: str) -> ResNet:
    """A torchvision ResNet with random weights."""
    if name == "resnet10":
        return ResNet(BasicBlock, [1, 1, 1, 1])
    backbone = torchvision.models.get_model(name, weights=None)
    assert isinstance(backbone, ResNet)
    return backbone


class GlobalAveragePool(nn.Module):
    """Feature maps [n, F, h, w] -> their means [n, F]."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean(dim=(2, 3))


def find_split(config: ModelConfig, allowed: list[str], default: str) -> str:
    """The stage after which the branches begin. Raises `UserError` listing those there are."""
    if not config.split:
        return default
    if config.split not in allowed:
        raise UserError(
            f"model.split is {config.split!r}{did_you_mean(config.split, allowed)}; the extractor of {config.backbone} "
            f"may end with {', '.join(allowed)} (default: {default})"
        )
    return config.split


def split_at(
    units: Units, last: str, extractor: Callable[[Units], nn.Module] | None = None
) -> tuple[nn.Module, nn.Module]:
    """Units up to `last`, and those after it; `extractor` makes a module of the former where a chain is not enough."""
    names = list(units)
    end = names.index(last) + 1
    front, rest = ({name: units[name] for name in part} for part in (names[:end], names[end:]))
    return (extractor or sequential)(front), sequential(rest)


def sequential(units: Units) -> nn.Sequential:
    """One after the other; the parameters of `stages.0` are called `stages.0.*` again."""
    nested: dict[str, dict[str, nn.Module]] = {}
    for name, unit in units.items():
        first, _, below = name.partition(".")
        nested.setdefault(first, {})[below] = unit
    whole = nn.Sequential()
    for first, inner in nested.items():
        whole.add_module(first, inner[""] if "" in inner else sequential(inner))
    return whole
