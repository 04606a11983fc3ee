"""Base class for inference, used both for evaluation during training and for trained models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from adadf_dist.method.model import DualBranch, Output


class InferenceModel(ABC):
    """Run a network in evaluation mode on preprocessed images [n, 3, H, W]."""

    def __init__(self, device: torch.device, bf16: bool) -> None:
        self.device = device
        self._bf16 = bf16
        # channels last is fastest on GPUs and bf16 units; fp32 on a CPU is faster without it
        fast = bf16 or device.type == "cuda"
        self.memory_format = torch.channels_last if fast else torch.contiguous_format

    @property
    @abstractmethod
    def eval_model(self) -> DualBranch:
        """Model used for evaluation, checkpoint selection and export."""

    @torch.no_grad()
    def forward_eval(self, images: Tensor) -> Output:
        """Run both branches on images [n, 3, H, W] in evaluation mode."""
        with self.autocast():
            output: Output = self._evaluating()(self.to_memory_format(images))
        return output

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Return only the target branch's logits [n, C] for images [n, 3, H, W]."""
        with self.autocast():
            return self._evaluating().predict(self.to_memory_format(images))

    @torch.no_grad()
    def infer_with_features(self, images: Tensor) -> tuple[Output, Tensor]:
        """Run both branches, and also return the target branch's features [n, F], the input of its heads."""
        with self.autocast():
            return self._evaluating().forward_with_features(self.to_memory_format(images))

    def to_memory_format(self, images: Tensor) -> Tensor:
        """Convert images to the memory format that is fastest on this device; other inputs become contiguous."""
        return images.contiguous(memory_format=self.memory_format if images.ndim == 4 else torch.contiguous_format)

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bf16)

    def _evaluating(self) -> DualBranch:
        model = self.eval_model
        if model.training:
            model.eval()
        return model
