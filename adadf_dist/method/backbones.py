"""Build backbones split in two: an extractor shared by both branches, and stages of which each branch has a copy.

Both parts keep the backbone's parameter names, so pretrained weights load without renaming.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from torch import Tensor, nn

from adadf_dist.config.backbone_names import DLIB_RESNET, TIMM
from adadf_dist.config.schema import ModelConfig
from adadf_dist.errors import UserError, did_you_mean
from adadf_dist.method import dlib_resnet

if TYPE_CHECKING:
    from torchvision.models.resnet import ResNet

TIMM_BACKBONES = "adadf_dist.method.timm_backbones"
"""Module that builds timm backbones, imported only when needed because timm is an optional dependency."""

Units = Mapping[str, nn.Module]
"""A network's modules by dotted name, in the order they run: `stem`, `stages.0`, `stages.1`, ..."""


@dataclass(frozen=True)
class Backbone:
    """Network that maps images [n, 3, H, W] to features [n, F] by an extractor, then stages, then pooling."""

    extractor: nn.Module
    """First part, shared by both branches; outputs feature maps or tokens."""
    stages: nn.Module
    pool: nn.Module
    """Last part, which pools the last stage's feature maps or tokens to features [n, F]."""
    num_features: int


def build_backbone(config: ModelConfig, image_size: int) -> Backbone:
    """Build the backbone `model.backbone` with random weights, split after the stage `model.shared_until`.

    Raises `UserError` for an unknown stage, for an image size that the network does not support, and for a timm
    network that cannot be split.
    """
    if config.backbone == DLIB_RESNET:
        return build_dlib_resnet(config, image_size)
    if config.backbone.startswith(TIMM):
        backbone: Backbone = import_module(TIMM_BACKBONES).build(config, image_size)
        return backbone
    resnet = build_resnet(config.backbone)
    resize_resnet(resnet, config)
    names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    units = {name: getattr(resnet, name) for name in names}
    extractor, stages = split_at(units, find_split(config, ["layer1", "layer2", "layer3"], "layer1"))
    return Backbone(extractor, stages, GlobalAveragePool(), int(resnet.fc.in_features * config.width))


def build_resnet(name: str) -> ResNet:
    """Build a torchvision ResNet with random weights."""
    import torchvision  # takes 2.5 s, which --help does not wait for
    from torchvision.models.resnet import BasicBlock, ResNet

    if name == "resnet10":
        return ResNet(BasicBlock, [1, 1, 1, 1])
    backbone = torchvision.models.get_model(name, weights=None)
    assert isinstance(backbone, ResNet)
    return backbone


def build_dlib_resnet(config: ModelConfig, image_size: int) -> Backbone:
    """Build dlib's face recognition network with random weights. Raises `UserError` for a small image size."""
    if image_size < dlib_resnet.MIN_IMAGE_SIZE:
        raise UserError(
            f"data.image_size is {image_size}, too small for model.backbone {config.backbone}",
            f"use at least {dlib_resnet.MIN_IMAGE_SIZE} (the published weights expect 150)",
        )
    units = dlib_resnet.build_units()
    stages = list(dlib_resnet.STAGES)
    split = find_split(config, [*stages[:-1], dlib_resnet.POOLED], stages[0])
    if split == dlib_resnet.POOLED:
        pooled, head = dlib_resnet.MultiStagePool(units), dlib_resnet.FeatureHead()
        return Backbone(pooled, head, nn.Identity(), dlib_resnet.HEAD_FEATURES)
    return Backbone(*split_at(units, split), GlobalAveragePool(), dlib_resnet.NUM_FEATURES)


def resize_resnet(resnet: ResNet, config: ModelConfig) -> None:
    """Apply `model.stem` and `model.width` to a ResNet, whose changed layers get new random weights.

    The classifier is unchanged, since a branch has its own.
    """
    if config.width != 1:
        for parent in list(resnet.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.BatchNorm2d):
                    setattr(parent, name, nn.BatchNorm2d(int(layer.num_features * config.width)))
                elif isinstance(layer, nn.Conv2d):
                    inputs = layer.in_channels if layer is resnet.conv1 else int(layer.in_channels * config.width)
                    setattr(parent, name, resize_conv(layer, inputs, int(layer.out_channels * config.width)))
    if config.stem != "standard":
        outputs = resnet.conv1.out_channels
        stride = 2 if config.stem == "small_stride2" else 1
        resnet.conv1 = resize_conv(nn.Conv2d(3, outputs, 3, stride, padding=1, bias=False), 3, outputs)
        resnet.maxpool = nn.Identity()


def resize_conv(like: nn.Conv2d, inputs: int, outputs: int) -> nn.Conv2d:
    """Return a convolution like that of a ResNet with other channels, initialized as torchvision's."""
    kernel, stride, padding = like.kernel_size, like.stride, like.padding
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)  # type: ignore[arg-type]
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class GlobalAveragePool(nn.Module):
    """Average feature maps [n, F, h, w] over all positions to get features [n, F]."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean(dim=(2, 3))


def find_split(config: ModelConfig, allowed: list[str], default: str) -> str:
    """Return the name of the extractor's last stage. Raises `UserError` if the configured stage is not in `allowed`."""
    if not config.shared_until:
        return default
    if config.shared_until not in allowed:
        close = did_you_mean(config.shared_until, allowed)
        raise UserError(
            f"model.shared_until is {config.shared_until!r}{close}; the extractor of {config.backbone} can end with "
            f"{', '.join(allowed)} (default: {default})"
        )
    return config.shared_until


def split_at(
    units: Units, last: str, extractor: Callable[[Units], nn.Module] | None = None
) -> tuple[nn.Module, nn.Module]:
    """Split a network into two modules, the first of which ends with the unit `last`.

    `extractor` builds the first module; by default, both run their units in sequence.
    """
    names = list(units)
    end = names.index(last) + 1
    front, rest = ({name: units[name] for name in part} for part in (names[:end], names[end:]))
    return (extractor or sequential)(front), sequential(rest)


def sequential(units: Units) -> nn.Sequential:
    """Chain units in order, keeping their dotted names: parameters of `stages.0` are still called `stages.0.*`."""
    nested: dict[str, dict[str, nn.Module]] = {}
    for name, unit in units.items():
        first, _, below = name.partition(".")
        nested.setdefault(first, {})[below] = unit
    whole = nn.Sequential()
    for first, inner in nested.items():
        whole.add_module(first, inner[""] if "" in inner else sequential(inner))
    return whole
