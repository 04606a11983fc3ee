"""Split timm networks into an extractor and stages. Only this module knows the structure of timm models.

A network's forward method cannot be inspected, so the network is assumed to run its child modules in sequence. The
result is then compared with timm's own output for an image, and a network with a different result is rejected.
"""

from __future__ import annotations

import re
from typing import Any

import timm
import torch
from timm.layers import global_pool_nlc  # type: ignore[attr-defined]
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from adadf_dist.config.backbone_names import TIMM
from adadf_dist.config.schema import ModelConfig
from adadf_dist.errors import UserError, single_line
from adadf_dist.method.backbones import Backbone, Units, find_split, sequential, split_at

CONTAINERS = ("stages", "blocks", "layers", "features")
"""Names of child modules whose own children are the stages."""
NUMBERED = re.compile(r"(layer|stage|block|s)\d+")
"""Names of child modules that are stages themselves, as in ResNet and RegNet."""
POOLING = ("global_pool", "pre_logits", "head")
"""Names of pooling modules. The first one and all modules after it turn the last stage's output into features."""
REDUCTION = 4
"""By default, the extractor ends with the first stage that downsamples the image by at least this factor.

For ResNet, that is layer1.
"""
VIT_SHARED_FRACTION = 4
"""By default, the extractor has the first 1/`VIT_SHARED_FRACTION` of a vision transformer's blocks."""
TOLERANCE = 1e-6


def build(config: ModelConfig, image_size: int) -> Backbone:
    """Build a timm network with random weights, split into extractor and stages.

    Raises `UserError` if the network cannot be split or does not support the image size.
    """
    whole = create(config.backbone, image_size)
    backbone = split_vit(whole, config) if type(whole) is VisionTransformer else split_sequential(whole, config)
    verify_against_timm(whole, backbone, config, image_size)
    return backbone


def pretrained_weights(name: str, image_size: int) -> dict[str, Tensor]:
    """Return timm's pretrained weights, adapted to the image size. Raises `UserError` if they cannot be downloaded."""
    try:
        whole = create(name, image_size, pretrained=True)
    except UserError:
        raise
    except Exception as error:  # each weight host has its own client with its own exceptions
        raise UserError(
            f"model.pretrained imagenet: timm could not download the {name.removeprefix(TIMM)} weights "
            f"({single_line(error)}); download them on a machine with network access and set model.pretrained to "
            "the file"
        ) from None
    return dict(whole.state_dict())


def create(name: str, image_size: int, pretrained: bool = False) -> nn.Module:
    """Create a timm network without a classifier or dropout, so that results are deterministic for a given seed."""
    own = name.removeprefix(TIMM)
    settings = timm.get_pretrained_cfg(own)
    sized: dict[str, Any] = {"img_size": image_size} if settings is not None and settings.fixed_input_size else {}
    try:
        whole: nn.Module = timm.create_model(own, pretrained=pretrained, num_classes=0, **sized)
    except (AssertionError, TypeError, ValueError) as error:
        if pretrained:
            raise
        raise unsupported_size_error(name, image_size, error) from None
    for module in whole.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for rate in ("drop_prob", "drop_rate"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
    return whole


def unsupported_size_error(name: str, image_size: int, error: BaseException) -> UserError:
    return UserError(
        f"model.backbone {name} does not support data.image_size {image_size} ({single_line(error)}); choose "
        "another data.image_size"
    )


def split_sequential(whole: nn.Module, config: ModelConfig) -> Backbone:
    """Split a network whose child modules run in sequence, such as stem, stages, norm and head."""
    units: dict[str, nn.Module] = {}
    stages: list[str] = []
    pooling: dict[str, nn.Module] = {}
    for name, child in whole.named_children():
        if pooling or name in POOLING:
            pooling[name] = child
        elif name in CONTAINERS and type(child) is nn.Sequential:
            inner = {f"{name}.{below}": stage for below, stage in child.named_children()}
            units |= inner
            stages += inner
        else:
            units[name] = child
            stages += [name] * bool(NUMBERED.fullmatch(name))
    if len(stages) < 2:
        raise not_splittable_error(config.backbone, "it has fewer than two stages")
    split = find_split(config, stages[:-1], first_stage_at_reduction(whole, stages[:-1]))
    extractor, rest = split_at(units, split)
    return Backbone(extractor, rest, sequential(pooling), count_features(whole))


def first_stage_at_reduction(whole: nn.Module, stages: list[str]) -> str:
    """Return the first stage whose resolution, as listed by timm, is reduced by a factor of at least `REDUCTION`."""
    known = getattr(whole, "feature_info", [])
    reductions = {info["module"]: info["reduction"] for info in getattr(known, "info", known)}
    return next((stage for stage in stages if reductions.get(stage, 0) >= REDUCTION), stages[0])


def split_vit(whole: VisionTransformer, config: ModelConfig) -> Backbone:
    """Split a vision transformer into an extractor (patch embedding and first blocks) and the remaining blocks."""
    blocks: Units = {f"blocks.{number}": block for number, block in whole.blocks.named_children()}
    names = list(blocks)
    split = find_split(config, names[:-1], names[max(1, len(names) // VIT_SHARED_FRACTION) - 1])
    extractor, rest = split_at({**blocks, "norm": whole.norm}, split, lambda front: Tokens(whole, front))
    return Backbone(extractor, rest, PooledTokens(whole), count_features(whole))


def count_features(whole: nn.Module) -> int:
    count = getattr(whole, "head_hidden_size", whole.num_features)
    assert isinstance(count, int)
    return count


class Tokens(nn.Module):
    """Extractor of a vision transformer, which maps images [n, 3, H, W] to tokens [n, T, F].

    It consists of the patch embedding and the first blocks. Prefix tokens (class and register tokens) come first.
    """

    def __init__(self, whole: VisionTransformer, blocks: Units) -> None:
        super().__init__()
        self.patch_embed = whole.patch_embed
        self.cls_token, self.reg_token, self.pos_embed = whole.cls_token, whole.reg_token, whole.pos_embed
        self.norm_pre = whole.norm_pre
        self.blocks = sequential({name.removeprefix("blocks."): block for name, block in blocks.items()})
        self.positions_of_patches_alone = whole.no_embed_class

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patch_embed(images)
        if tokens.dim() == 4:  # [n, h, w, F], in models for dynamic image sizes
            tokens = tokens.flatten(1, 2)
        if self.positions_of_patches_alone and self.pos_embed is not None:
            tokens = tokens + self.pos_embed
        # not len(tokens), which torch.export would treat as a constant
        prefix = [
            token.expand(tokens.shape[0], -1, -1) for token in (self.cls_token, self.reg_token) if token is not None
        ]
        tokens = torch.cat([*prefix, tokens], dim=1)
        if not self.positions_of_patches_alone and self.pos_embed is not None:
            tokens = tokens + self.pos_embed
        after: Tensor = self.blocks(self.norm_pre(tokens))
        return after


class PooledTokens(nn.Module):
    """Pools tokens [n, T, F] to features [n, F] as the original model does: class token, or mean over patches."""

    def __init__(self, whole: VisionTransformer) -> None:
        super().__init__()
        self.attn_pool, self.fc_norm = whole.attn_pool, whole.fc_norm
        self.kind, self.prefix, self.include_prefix = (
            whole.global_pool,
            whole.num_prefix_tokens,
            whole.pool_include_prefix,
        )

    def forward(self, tokens: Tensor) -> Tensor:
        if self.attn_pool is not None:
            pooled = self.attn_pool(tokens if self.include_prefix else tokens[:, self.prefix :])
        else:
            pooled = global_pool_nlc(tokens, self.kind, self.prefix, self.include_prefix)
        features: Tensor = self.fc_norm(pooled)
        return features


@torch.no_grad()
def verify_against_timm(whole: nn.Module, backbone: Backbone, config: ModelConfig, image_size: int) -> None:
    """Raise `UserError` unless the split parts form the complete network and compute the same features as the original.

    On the meta device, which holds no values, only names and shapes are compared.
    """
    parts = (backbone.extractor, backbone.stages, backbone.pool)
    held = {name for part in parts for name in part.state_dict()}
    if lost := held ^ whole.state_dict().keys():
        raise not_splittable_error(config.backbone, f"its parts and the whole network disagree about {min(lost)}")
    images = torch.linspace(-1, 1, 3 * image_size**2, device=next(whole.parameters()).device)
    images = images.view(1, 3, image_size, image_size)
    whole.eval()
    for part in parts:
        part.eval()
    try:
        expected = whole.forward_head(whole.forward_features(images), pre_logits=True)  # type: ignore[operator]
    except (RuntimeError, AssertionError, ValueError) as error:
        raise unsupported_size_error(config.backbone, image_size, error) from None
    try:
        maps = backbone.extractor(images)
        features = backbone.pool(backbone.stages(maps.clone()))
        backbone.stages(maps)
        again = backbone.extractor(images)
    except (RuntimeError, AssertionError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise not_splittable_error(config.backbone, single_line(error)) from None
    if features.shape != expected.shape or features.shape != (1, backbone.num_features):
        raise not_splittable_error(
            config.backbone, f"its features have shape {list(features.shape)}, not {list(expected.shape)}"
        )
    if not images.is_meta:
        if not torch.allclose(features, expected, rtol=0, atol=TOLERANCE):
            raise not_splittable_error(config.backbone, "its parts in sequence do not compute the same features")
        if not torch.equal(maps, again):
            raise UserError(
                f"model.shared_until {config.shared_until!r}: in {config.backbone}, the next stage modifies its input "
                "in place, but both branches share that input; choose another stage"
            )
    whole.train()
    for part in parts:
        part.train()


def not_splittable_error(name: str, reason: str) -> UserError:
    return UserError(
        f"model.backbone {name} cannot be split into an extractor and branches ({reason}); docs/backbones.md lists "
        "model families that can be split"
    )
