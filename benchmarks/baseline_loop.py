"""A conventional training loop, the baseline of the epoch benchmark.

It uses one process, PIL decoding and transforms in a DataLoader, fp32, NCHW, and a second full pass over the training
samples for the class distributions. The method is the same as in this package; only the implementation differs.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from adadf_dist.config.schema import ClassDistributionConfig, LossConfig, ModelConfig
from adadf_dist.data.dataset import Split, open_dataset
from adadf_dist.distributed.world import World, pick_device
from adadf_dist.method.class_distributions import ClassDistributions
from adadf_dist.method.losses import BatchSlice, TargetInputs, adadf_loss, ramp_weights
from adadf_dist.method.model import DualBranch
from adadf_dist.method.pretrained import load_pretrained

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Work(NamedTuple):
    """The workload, which is the same for both implementations."""

    shards: Path
    weights: Path
    """File with the state dict of a backbone; loading it freezes the feature extractor."""
    image_size: int
    batch_size: int


class Faces(Dataset[tuple[Tensor, int]]):
    """Dataset that decodes samples with PIL and applies torchvision's transforms."""

    def __init__(self, split: Split, transform: v2.Compose) -> None:
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.open(io.BytesIO(self.split.read(index))).convert("RGB")
        return self.transform(image), int(self.split.labels[index])


def transforms(image_size: int, train: bool) -> v2.Compose:
    steps: list[torch.nn.Module] = [v2.Resize((image_size, image_size))]
    if train:
        steps += [v2.RandAugment(num_ops=3, magnitude=5), v2.RandomHorizontalFlip()]
    steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    if train:
        steps += [v2.RandomErasing(p=0.5, scale=(0.02, 0.25))]
    return v2.Compose(steps)


def baseline_epoch(work: Work) -> float:
    """Train one epoch and return its seconds, including class distributions and the test."""
    began = time.perf_counter()
    dataset = open_dataset(work.shards)
    world = World(pick_device())
    config = ModelConfig(pretrained=str(work.weights))
    model = DualBranch(config, len(dataset.classes)).to(world.device)
    load_pretrained(model, config)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    classes = ClassDistributions(len(dataset.classes), ClassDistributionConfig(), world)
    loss_config = LossConfig()
    ramp = ramp_weights(1, loss_config.epoch_threshold)

    def batches(split: str, train: bool) -> Iterator[tuple[Tensor, Tensor]]:
        faces = Faces(dataset.split(split), transforms(work.image_size, train))
        loader = DataLoader(
            faces, work.batch_size, shuffle=train, num_workers=2, drop_last=train, multiprocessing_context="forkserver"
        )
        return ((images.to(world.device), labels.to(world.device)) for images, labels in loader)

    model.train()
    for images, labels in batches("train", train=True):
        output = model(images)
        place = (world, BatchSlice(0, len(labels)))
        losses = adadf_loss(output, labels, TargetInputs(classes.targets), ramp, loss_config, place)
        optimizer.zero_grad()
        losses.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.total.item()
    model.eval()
    with torch.no_grad():
        for images, labels in batches("train", train=True):
            classes.observe(model(images).auxiliary_logits, labels)
        classes.finalize_epoch()
        tested = 0
        for images, labels in batches("test", train=False):
            tested += len(labels)
            (model(images).target_logits.argmax(dim=1) == labels).sum().item()
    assert tested == len(dataset.split("test"))
    return time.perf_counter() - began
