"""A network asked without being trained: by evaluation in mid-run, and by all that open a trained one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from adadf_dist.method.model import DualBranch, Output


class Inference(ABC):
    """What a network in evaluation mode answers to images [n, 3, H, W] as a loader makes them."""

    def __init__(self, device: torch.device, bf16: bool) -> None:
        self.device = device
        self._bf16 = bf16
        # channels last is what bf16 units and GPUs multiply fastest; plain fp32 on a CPU is faster without
        fast = bf16 or device.type == "cuda"
        self.memory_format = torch.channels_last if fast else torch.contiguous_format

    @property
    @abstractmethod
    def evaluated(self) -> DualBranch:
        """The model that evaluation, selection and export see."""

    @torch.no_grad()
    def infer(self, images: Tensor) -> Output:
        """Both branches."""
        with self.autocast():
            output: Output = self._evaluating()(self.arrange(images))
        return output

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Target logits [n, C] alone."""
        with self.autocast():
            return self._evaluating().predict(self.arrange(images))

    @torch.no_grad()
    def infer_with_features(self, images: Tensor) -> tuple[Output, Tensor]:
        """Both branches, and the target branch's features [n, F] before its classifier."""
        with self.autocast():
            return self._evaluating().forward_with_features(self.arrange(images))

    def arrange(self, images: Tensor) -> Tensor:
        """The same images in the memory format that this device computes fastest in."""
        return images.contiguous(memory_format=self.memory_format)

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bf16)

    def _evaluating(self) -> DualBranch:
        model = self.evaluated
        if model.training:
            model.eval()
        return model
