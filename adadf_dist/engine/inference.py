"""A network asked without being trained: by evaluation in mid-run, and by all that open a trained one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from adadf_dist.method.model import DualBranch, Output


class InferenceModel(ABC):
    """What a network in evaluation mode answers to images [n, 3, H, W] as a loader makes them."""

    def __init__(self, device: torch.device, bf16: bool) -> None:
        self.device = device
        self._bf16 = bf16
        # channels last is what bf16 units and GPUs multiply fastest; plain fp32 on a CPU is faster without
        fast = bf16 or device.type == "cuda"
        self.memory_format = torch.channels_last if fast else torch.contiguous_format

    @property
    @abstractmethod
    def eval_model(self) -> DualBranch:
        """The model that evaluation, selection and export see."""

    @torch.no_grad()
    def forward_eval(self, images: Tensor) -> Output:
        """Both branches."""
        with self.autocast():
            output: Output = self._evaluating()(self.to_memory_format(images))
        return output

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Target logits [n, C] alone."""
        with self.autocast():
            return self._evaluating().predict(self.to_memory_format(images))

    @torch.no_grad()
    def infer_with_features(self, images: Tensor) -> tuple[Output, Tensor]:
        """Both branches, and the target branch's features [n, F] before its classifier."""
        with self.autocast():
            return self._evaluating().forward_with_features(self.to_memory_format(images))

    def to_memory_format(self, images: Tensor) -> Tensor:
        """The same images in the memory format that this device computes fastest in."""
        return images.contiguous(memory_format=self.memory_format)

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bf16)

    def _evaluating(self) -> DualBranch:
        model = self.eval_model
        if model.training:
            model.eval()
        return model
