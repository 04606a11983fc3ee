"""`model.stem` and `model.width`: shapes, parameters and multiply-adds against closed forms."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from adadf_dist.config.schema import ModelConfig
from adadf_dist.errors import UserError
from adadf_dist.method.backbones import build_backbone
from adadf_dist.method.model import DualBranch
from adadf_dist.method.pretrained import load_pretrained

SMALL = ModelConfig(stem="small", width=0.5)


def count_resnet18(channels: int, kernel: int) -> int:
    """The parameters of a ResNet18 without classifier, whose first convolution has `channels` of side `kernel`."""
    total, inputs = 3 * kernel**2 * channels + 2 * channels, channels
    for outputs in (channels, 2 * channels, 4 * channels, 8 * channels):
        first = 9 * inputs * outputs + 9 * outputs**2 + 4 * outputs
        shortcut = inputs * outputs + 2 * outputs if inputs != outputs else 0
        total += first + shortcut + 2 * 9 * outputs**2 + 4 * outputs
        inputs = outputs
    return total


def count_parameters(config: ModelConfig) -> int:
    backbone = build_backbone(config, 64)
    return sum(p.numel() for part in (backbone.extractor, backbone.stages) for p in part.parameters())


def count_flops(config: ModelConfig, side: int) -> tuple[int, int]:
    """Two per multiply-add: of the first convolution, and of all other layers, for one image."""
    backbone = build_backbone(config, side)
    with FlopCounterMode(display=False) as counter:
        backbone.pool(backbone.stages(backbone.extractor(torch.zeros(1, 3, side, side))))
    with FlopCounterMode(display=False) as stem:
        backbone.extractor.conv1(torch.zeros(1, 3, side, side))  # type: ignore[operator]
    return stem.get_total_flops(), counter.get_total_flops() - stem.get_total_flops()


@pytest.mark.parametrize(
    ("config", "channels", "kernel"),
    [(ModelConfig(), 64, 7), (ModelConfig(stem="small"), 64, 3), (ModelConfig(width=0.5), 32, 7), (SMALL, 32, 3)],
)
def test_parameters_equal_the_closed_form(config: ModelConfig, channels: int, kernel: int) -> None:
    assert count_parameters(config) == count_resnet18(channels, kernel)


def test_small_stem_keeps_the_resolution() -> None:
    """The extractor's maps, and the features of each branch."""
    model = DualBranch(SMALL, 7, image_size=48)
    maps = model.extractor(torch.zeros(2, 3, 48, 48))
    assert maps.shape == (2, 32, 48, 48)
    assert model.target.features(maps).shape == (2, 256)
    assert DualBranch(ModelConfig(), 7).extractor(torch.zeros(2, 3, 48, 48)).shape == (2, 64, 12, 12)
    bottlenecks = DualBranch(ModelConfig(backbone="resnet50", stem="small", width=0.5), 7)
    maps = bottlenecks.extractor(torch.zeros(2, 3, 32, 32))
    assert maps.shape == (2, 128, 32, 32)
    assert bottlenecks.target.features(maps).shape == (2, 1024)


def test_half_width_and_small_stem_have_the_standard_multiply_adds_at_twice_the_side() -> None:
    stem, rest = count_flops(SMALL, 32)
    assert stem == 2 * 32 * 32 * 9 * 3 * 32
    assert rest == count_flops(ModelConfig(), 64)[1]
    assert rest == count_flops(ModelConfig(stem="small"), 32)[1] / 4


def test_half_width_and_stride_2_have_the_standard_multiply_adds_at_the_same_side() -> None:
    stem, rest = count_flops(ModelConfig(stem="small_stride2", width=0.5), 64)
    assert stem == 2 * 32 * 32 * 9 * 3 * 32
    assert rest == count_flops(ModelConfig(), 64)[1]


def test_changed_layers_have_the_initial_weights_of_a_resnet() -> None:
    """He et al.'s variance by output, as torchvision's; another seed gives other weights."""
    torch.manual_seed(0)
    model = build_backbone(SMALL, 32)
    for part in (model.extractor, model.stages):
        for conv in (layer for layer in part.modules() if isinstance(layer, nn.Conv2d)):
            fan_out = conv.out_channels * conv.kernel_size[0] ** 2
            assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
    assert first_weight(1).ne(first_weight(2)).all()
    assert torch.equal(first_weight(1), first_weight(1))


def first_weight(seed: int) -> Tensor:
    torch.manual_seed(seed)
    return build_backbone(SMALL, 32).extractor.state_dict()["conv1.weight"]


def test_file_of_the_same_size_loads_and_another_is_one_line(tmp_path: Path) -> None:
    own = build_backbone(SMALL, 32)
    torch.save(own.extractor.state_dict() | own.stages.state_dict(), tmp_path / "half.pt")
    config = ModelConfig(stem="small", width=0.5, pretrained=str(tmp_path / "half.pt"))
    model = DualBranch(config, 7)
    assert load_pretrained(model, config).matched == len(own.extractor.state_dict() | own.stages.state_dict())
    assert torch.equal(model.extractor.state_dict()["conv1.weight"], own.extractor.state_dict()["conv1.weight"])
    for other in (ModelConfig(pretrained=config.pretrained), ModelConfig(width=0.5, pretrained=config.pretrained)):
        with pytest.raises(UserError, match=r"half\.pt has a different shape for .*; is it a resnet18.*\?") as caught:
            load_pretrained(DualBranch(other, 7), other)
        assert "\n" not in str(caught.value)
    assert "is it a resnet18 of width 0.5 with the standard stem, as set by model.backbone" in str(caught.value)
