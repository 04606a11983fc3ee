"""The exported part of a trained network: extractor and target branch, from normalized images to logits."""

from __future__ import annotations

from torch import Tensor, nn

from adadf_dist.method.model import DualBranch

INPUT, OUTPUT = "images", "logits"
"""Input and output names in every file."""


class TargetNetwork(nn.Module):
    """Images [n, 3, H, W] as `Preprocessing` makes them -> logits [n, C], attention applied; fp32 throughout.

    Returns logits instead of probabilities, because ten-crop averages logits and temperature scaling needs them. Their
    softmax is the predicted distribution.
    """

    def __init__(self, model: DualBranch) -> None:
        """Create the network, sharing the weights of `model`, in evaluation mode."""
        super().__init__()
        self.extractor = model.extractor
        self.target = model.target
        self.attends = model.auxiliary is not None
        """False for the baseline, a plain classifier without auxiliary branch, whose attention head is unused."""
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.extractor(images)
        if self.attends:
            attended: Tensor = self.target(maps)[0]
            return attended
        plain: Tensor = self.target.classifier(self.target.features(maps))
        return plain
