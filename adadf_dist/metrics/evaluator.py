"""A split seen once by the model as it is used: target branch, evaluation mode, every sample counted once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adadf_dist.data.batch import Batch
from adadf_dist.data.dataset import Split
from adadf_dist.distributed.heartbeat import EVALUATION
from adadf_dist.distributed.world import World
from adadf_dist.metrics.classification import Metrics, per_class_recall, wilson_interval


class Predictor(Protocol):
    def predict(self, images: Tensor) -> Tensor: ...


class MetricAccumulator:
    """Sums over a split that add up over ranks."""

    def __init__(self, num_classes: int, world: World) -> None:
        self.world = world
        self.num_classes = num_classes
        self.confusion = torch.zeros(num_classes * num_classes, dtype=torch.float64, device=world.device)
        self.sums = torch.zeros(4, dtype=torch.float64, device=world.device)
        """Samples, cross entropy, KL of the votes, samples with votes."""

    def update(self, logits: Tensor, labels: Tensor, votes: Tensor | None) -> None:
        """Rows [n, C] with labels [n] and vote counts [n, C]."""
        log_p = F.log_softmax(logits.double(), dim=1)
        cells = labels * self.num_classes + logits.argmax(dim=1)
        self.confusion.index_add_(0, cells, torch.ones_like(log_p[:, 0]))
        entropy = F.nll_loss(log_p, labels, reduction="sum")
        divergence = voted = log_p.new_zeros(())
        if votes is not None:
            counts = votes.sum(dim=1, keepdim=True)
            shares = votes.double() / counts.clamp_min(1)
            terms = torch.xlogy(shares, shares) - shares * log_p
            divergence, voted = terms.sum(), (counts > 0).sum().double()
        self.sums += torch.stack([log_p.new_tensor(len(labels)), entropy, divergence, voted])

    def compute(self, split: Split) -> Metrics:
        """Sum over ranks. A collective."""
        everything = self.world.all_reduce_sum_(torch.cat([self.sums, self.confusion])).cpu().numpy()
        samples, entropy, divergence, voted = everything[:4]
        confusion = everything[4:].reshape(self.num_classes, self.num_classes).astype(np.int64)
        if not samples == len(split) == confusion.sum():  # not an assertion: the promise holds under python -O too
            raise RuntimeError(f"{samples:.0f} samples counted of the {len(split)} of split {split.name}")
        recalls = per_class_recall(confusion)
        correct = int(np.trace(confusion))
        return Metrics(
            samples=len(split),
            accuracy=correct / len(split),
            accuracy_interval=wilson_interval(correct, len(split)),
            mean_class_accuracy=float(np.nanmean(recalls)),
            class_accuracy=tuple(recalls.tolist()),
            confusion=tuple(tuple(row) for row in confusion.tolist()),
            cross_entropy=float(entropy / samples),
            vote_divergence=float(divergence / voted) if voted else None,
            ceiling=bayes_accuracy(split),
        )


def evaluate(predictor: Predictor, batches: Iterable[Batch], split: Split, world: World) -> Metrics:
    """Metrics of a split whose samples `batches` hold, each rank its own share. A collective."""
    return count(lambda batch: predict_batch(predictor, batch), batches, split, world).compute(split)


def count(
    predict: Callable[[Batch], Tensor], batches: Iterable[Batch], split: Split, world: World
) -> MetricAccumulator:
    """This rank's sums over `batches`, of which `predict` gives the target logits [n, C]. No collective."""
    totals = MetricAccumulator(len(split.classes), world)
    votes = None if split.votes is None else torch.from_numpy(split.votes).to(world.device)
    with world.heartbeat.timed(EVALUATION):
        size = attrgetter("global_size")  # all ranks together are that far
        for batch in world.heartbeat.wrap(batches, f"evaluating {split.name}", len(split), "samples", size):
            totals.update(predict(batch), batch.labels, None if votes is None else votes[batch.sample_ids])
        totals.sums.cpu()  # the device's work is done when its clock stops
    return totals


def predict_batch(predictor: Predictor, batch: Batch) -> Tensor:
    """Target logits [n, C], each face's the mean over its crops."""
    return mean_of_crops(predictor.predict(batch.flatten_crops().images), batch)


def mean_of_crops(logits: Tensor, batch: Batch) -> Tensor:
    """[n, C] of the rows of `batch`, which are several a sample where it is cropped."""
    return logits.view(-1, batch.num_crops, logits.shape[1]).mean(dim=1) if batch.num_crops > 1 else logits


def bayes_accuracy(split: Split) -> float | None:
    """Share of samples whose label is the likeliest class of their true distribution, where that is known."""
    if split.distributions is None:
        return None
    return float(np.mean(split.distributions.argmax(axis=1) == split.labels))
