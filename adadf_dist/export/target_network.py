"""What is exported of a trained network: extractor and target branch, from normalised images to logits."""

from __future__ import annotations

from torch import Tensor, nn

from adadf_dist.method.model import DualBranch

INPUT, OUTPUT = "images", "logits"
"""Names of what goes in and comes out, in every file."""


class TargetNetwork(nn.Module):
    """Images [n, 3, H, W] as `Preprocessing` makes them -> logits [n, C], attention applied; fp32 throughout.

    Logits and not probabilities: ten crops are averaged as logits, and temperature scaling wants them. Their softmax
    is the predicted distribution.
    """

    def __init__(self, model: DualBranch) -> None:
        """Shares the weights of `model`, in evaluation mode."""
        super().__init__()
        self.extractor = model.extractor
        self.target = model.target
        self.attends = model.auxiliary is not None
        """The baseline has no auxiliary branch and is a plain classifier: its attention head rests."""
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        maps = self.extractor(images)
        if self.attends:
            attended: Tensor = self.target(maps)[0]
            return attended
        plain: Tensor = self.target.classifier(self.target.features(maps))
        return plain
