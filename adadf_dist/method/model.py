"""The paper's dual-branch network (section 3.1): a shared extractor and two branches with attention."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adadf_dist.config.schema import ModelConfig
from adadf_dist.method.backbones import Backbone, build_backbone


class Output(NamedTuple):
    """Outputs of both branches for n images and C classes, all in float32 or wider."""

    auxiliary_logits: Tensor
    """[n, C], logits of the auxiliary branch; their softmax is the label distribution (eq 1 and 2)."""
    target_logits: Tensor
    """[n, C], logits of the target branch, which give the prediction."""
    auxiliary_attention: Tensor
    """[n], attention weight of each image in the auxiliary branch, between 0 and 1."""
    target_attention: Tensor
    """[n], attention weight of each image in the target branch, between 0 and 1."""


class Branch(nn.Module):
    """One branch: the backbone's stages after the extractor, an attention head and a classifier."""

    def __init__(self, backbone: Backbone, num_classes: int, attention_on: str) -> None:
        super().__init__()
        self.stages = backbone.stages
        self.pool = backbone.pool
        self.attention = nn.Linear(backbone.num_features, 1)
        self.classifier = nn.Linear(backbone.num_features, num_classes)
        self.attention_on = attention_on

    def features(self, maps: Tensor) -> Tensor:
        """Return features [n, F], at least float32, for the extractor's feature maps [n, K, h, w] or tokens."""
        features: Tensor = self.pool(self.stages(maps))
        return features.float() if features.dtype in (torch.bfloat16, torch.float16) else features

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return attention-weighted logits [n, C] and attention weights [n] for the extractor's output."""
        return self.heads(self.features(maps))

    def heads(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return attention-weighted logits [n, C] and attention weights [n] for `features` [n, F].

        Autocast is disabled here, because attention weights rounded to bf16 would often be equal within a batch.
        """
        with torch.autocast(features.device.type, enabled=False):
            attention = torch.sigmoid(self.attention(features))
            if self.attention_on == "features":
                logits = self.classifier(attention * features)
            else:
                logits = attention * self.classifier(features)
        return logits, attention.squeeze(1)


class DualBranch(nn.Module):
    """Network with a shared extractor, an auxiliary branch and a target branch.

    The auxiliary branch starts as a copy of the target branch. The baseline (`auxiliary=False`) has only the target
    branch, whose logits are returned for both branches, with all attention weights equal to 1.
    """

    auxiliary: Branch | None

    def __init__(self, config: ModelConfig, num_classes: int, auxiliary: bool = True, image_size: int = 224) -> None:
        super().__init__()
        backbone = build_backbone(config, image_size)
        self.extractor = backbone.extractor
        self.target = Branch(backbone, num_classes, config.attention_on)
        self.auxiliary = copy.deepcopy(self.target) if auxiliary else None
        if not auxiliary:
            self.target.attention.requires_grad_(False)
        self.num_classes = num_classes
        self.image_size = image_size
        self.extractor_frozen = False
        self.skips_extractor = False
        """Whether inputs are outputs of the frozen extractor, computed earlier, instead of images."""

    def freeze_extractor(self) -> None:
        """Exclude the extractor's weights and BatchNorm statistics from training."""
        self.extractor_frozen = True
        self.extractor.requires_grad_(False)
        self.extractor.eval()

    def copy_target_to_auxiliary(self) -> None:
        """Copy the target branch's weights to the auxiliary branch; needed after loading pretrained weights."""
        if self.auxiliary is not None:
            self.auxiliary.load_state_dict(self.target.state_dict())

    def train(self, mode: bool = True) -> DualBranch:
        super().train(mode)
        if self.extractor_frozen:
            self.extractor.eval()
        return self

    def forward(self, images: Tensor) -> Output:
        """Run both branches on images [n, 3, H, W]."""
        return self.forward_with_features(images)[0]

    def forward_with_features(self, images: Tensor) -> tuple[Output, Tensor]:
        """Run both branches on images [n, 3, H, W]; also return the target branch's features [n, F]."""
        maps = images if self.skips_extractor else self.extractor(images)
        if self.auxiliary is None:
            features = self.target.features(maps)
            logits = self._classify(features)
            ones = torch.ones(len(logits), device=logits.device, dtype=logits.dtype)
            return Output(logits, logits, ones, ones), features
        auxiliary_logits, auxiliary_attention = self.auxiliary(maps)
        features = self.target.features(maps)
        target_logits, target_attention = self.target.heads(features)
        return Output(auxiliary_logits, target_logits, auxiliary_attention, target_attention), features

    def predict(self, images: Tensor) -> Tensor:
        """Return only the target branch's logits [n, C] for images [n, 3, H, W]."""
        return self.predict_from_features(images if self.skips_extractor else self.extractor(images))

    def predict_from_features(self, maps: Tensor) -> Tensor:
        if self.auxiliary is not None:
            logits: Tensor = self.target(maps)[0]
            return logits
        return self._classify(self.target.features(maps))

    def _classify(self, features: Tensor) -> Tensor:
        """Return the baseline's logits [n, C], computed from features [n, F] without the attention head."""
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(features, self.target.classifier.weight, self.target.classifier.bias)
