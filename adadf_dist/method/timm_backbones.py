"""timm's networks, cut in two. The only file that takes timm's models apart.

What forward methods do is not to be read from outside, so each network is taken for a chain of its children, and then
held against timm's own answer to an image: one that is no such chain is refused, not trained as something else.
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
"""Children whose own children are the stages."""
NUMBERED = re.compile(r"(layer|stage|block|s)\d+")
"""Children that are stages themselves: ResNet's, RegNet's."""
POOLING = ("global_pool", "pre_logits", "head")
"""With the first of these the last stage's maps become features."""
REDUCTION = 4
"""By default the extractor ends with the first stage whose maps are this much smaller than the image, as after
ResNet's layer1."""
VIT_SHARED_FRACTION = 4
"""Vision transformers have no stages: by default the extractor holds this part of the blocks."""
TOLERANCE = 1e-6


def build(config: ModelConfig, image_size: int) -> Backbone:
    """Random weights. Raises `UserError` where it cannot be cut, or refuses the image size."""
    whole = create(config.backbone, image_size)
    backbone = split_vit(whole, config) if type(whole) is VisionTransformer else split_sequential(whole, config)
    verify_against_timm(whole, backbone, config, image_size)
    return backbone


def pretrained_weights(name: str, image_size: int) -> dict[str, Tensor]:
    """timm's own weights, fitted to the image size by timm. Raises `UserError` where they cannot be fetched."""
    try:
        whole = create(name, image_size, pretrained=True)
    except UserError:
        raise
    except Exception as error:  # each host of weights has a client, and each client errors of its own
        raise UserError(
            f"model.pretrained imagenet: timm could not fetch the {name.removeprefix(TIMM)} weights "
            f"({single_line(error)}); fetch them where there is a network and give the file as model.pretrained"
        ) from None
    return dict(whole.state_dict())


def create(name: str, image_size: int, pretrained: bool = False) -> nn.Module:
    """Without a classifier, and with nothing in it that draws at random: a run is a function of its seed."""
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
        f"model.backbone {name} does not take images of data.image_size {image_size} ({single_line(error)}); give "
        "another data.image_size"
    )


def split_sequential(whole: nn.Module, config: ModelConfig) -> Backbone:
    """A network whose children are computed one after the other: a stem, stages, a norm, a head."""
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
        raise not_splittable_error(config.backbone, "it has no two stages")
    split = find_split(config, stages[:-1], first_stage_at_reduction(whole, stages[:-1]))
    extractor, rest = split_at(units, split)
    return Backbone(extractor, rest, sequential(pooling), count_features(whole))


def first_stage_at_reduction(whole: nn.Module, stages: list[str]) -> str:
    """The first stage whose maps are `REDUCTION` times smaller than the image, as timm counts it."""
    known = getattr(whole, "feature_info", [])
    reductions = {info["module"]: info["reduction"] for info in getattr(known, "info", known)}
    return next((stage for stage in stages if reductions.get(stage, 0) >= REDUCTION), stages[0])


def split_vit(whole: VisionTransformer, config: ModelConfig) -> Backbone:
    """A vision transformer: the extractor makes tokens of the image and holds the first blocks."""
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
    """Images [n, 3, H, W] -> tokens [n, T, F] after the first blocks; prefix tokens (class, registers) come first."""

    def __init__(self, whole: VisionTransformer, blocks: Units) -> None:
        super().__init__()
        self.patch_embed = whole.patch_embed
        self.cls_token, self.reg_token, self.pos_embed = whole.cls_token, whole.reg_token, whole.pos_embed
        self.norm_pre = whole.norm_pre
        self.blocks = sequential({name.removeprefix("blocks."): block for name, block in blocks.items()})
        self.positions_of_patches_alone = whole.no_embed_class

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patch_embed(images)
        if tokens.dim() == 4:  # [n, h, w, F], of members that are made for any size
            tokens = tokens.flatten(1, 2)
        if self.positions_of_patches_alone and self.pos_embed is not None:
            tokens = tokens + self.pos_embed
        # not len(tokens), which torch.export would take for a constant
        prefix = [
            token.expand(tokens.shape[0], -1, -1) for token in (self.cls_token, self.reg_token) if token is not None
        ]
        tokens = torch.cat([*prefix, tokens], dim=1)
        if not self.positions_of_patches_alone and self.pos_embed is not None:
            tokens = tokens + self.pos_embed
        after: Tensor = self.blocks(self.norm_pre(tokens))
        return after


class PooledTokens(nn.Module):
    """Tokens [n, T, F] -> the class token's features [n, F], or the mean of the patches', as the member has it."""

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
    """Raises `UserError` unless the parts hold all of the network and answer an image as it does.

    On the meta device, where nothing has a value, only names and sizes can be held against it.
    """
    parts = (backbone.extractor, backbone.stages, backbone.pool)
    held = {name for part in parts for name in part.state_dict()}
    if lost := held ^ whole.state_dict().keys():
        raise not_splittable_error(config.backbone, f"its parts do not account for {min(lost)}")
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
            config.backbone, f"features of shape {list(features.shape)}, not {list(expected.shape)}"
        )
    if not images.is_meta:
        if not torch.allclose(features, expected, rtol=0, atol=TOLERANCE):
            raise not_splittable_error(config.backbone, "its parts, one after the other, do not compute what it does")
        if not torch.equal(maps, again):
            raise UserError(
                f"model.split {config.split!r}: in {config.backbone} the stage after it writes into its own input, "
                "which the branches share; give another stage"
            )
    whole.train()
    for part in parts:
        part.train()


def not_splittable_error(name: str, reason: str) -> UserError:
    return UserError(
        f"model.backbone {name} cannot be split into extractor and branches ({reason}); docs/backbones.md lists "
        "families that can"
    )
