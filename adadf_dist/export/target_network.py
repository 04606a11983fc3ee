"""The exported part of a trained network: extractor and target branch, from normalized images to logits."""

from __future__ import annotations

from torch import Tensor, nn

from adadf_dist.method.model import DualBranch

INPUT, OUTPUT = "images", "logits"
"""Names of the network's input and output in exported files."""


class TargetNetwork(nn.Module):
    """Network that maps images [n, 3, H, W] from `Preprocessing` to attention-weighted logits [n, C], in fp32.

    Returns logits instead of probabilities, because ten-crop averages logits and temperature scaling needs them. The
    softmax of the logits is the predicted distribution.
    """

    def __init__(self, model: DualBranch) -> None:
        """Create the network in evaluation mode. It shares the weights of `model`."""
        super().__init__()
        self.extractor = model.extractor
        self.target = model.target
        self.attends = model.auxiliary is not None
        """Whether attention is applied; False for the baseline, a plain classifier without an auxiliary branch."""
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.extractor(images)
        if self.attends:
            attended: Tensor = self.target(maps)[0]
            return attended
        plain: Tensor = self.target.classifier(self.target.features(maps))
        return plain
