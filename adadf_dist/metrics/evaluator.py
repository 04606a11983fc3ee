"""Evaluate the target branch on a split in evaluation mode, counting every sample once."""

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
from adadf_dist.metrics.classification import Metrics, per_class_recall
from adadf_dist.metrics.intervals import wilson_interval


class Predictor(Protocol):
    def predict(self, images: Tensor) -> Tensor: ...


class MetricAccumulator:
    """Accumulates this rank's sums over a split, and adds up the sums of all ranks at the end."""

    def __init__(self, num_classes: int, world: World) -> None:
        self.world = world
        self.num_classes = num_classes
        self.confusion = torch.zeros(num_classes * num_classes, dtype=torch.float64, device=world.device)
        self.sums = torch.zeros(4, dtype=torch.float64, device=world.device)
        """Four sums over samples: number, cross entropy, KL divergence from the votes, and number with votes."""

    def update(self, logits: Tensor, labels: Tensor, votes: Tensor | None) -> None:
        """Add n samples with logits [n, C], labels [n] and, if the dataset has votes, vote counts [n, C]."""
        log_p = F.log_softmax(logits.double(), dim=1)
        cells = labels * self.num_classes + logits.argmax(dim=1)
        self.confusion.index_add_(0, cells, torch.ones_like(log_p[:, 0]))
        entropy = F.nll_loss(log_p, labels, reduction="sum")
        divergence = voted = log_p.new_zeros(())
        if votes is not None:
            counts = votes.sum(dim=1, keepdim=True)
            fractions = votes.double() / counts.clamp_min(1)
            terms = torch.xlogy(fractions, fractions) - fractions * log_p
            divergence, voted = terms.sum(), (counts > 0).sum().double()
        self.sums += torch.stack([log_p.new_full((), len(labels)), entropy, divergence, voted])

    def compute(self, split: Split) -> Metrics:
        """Sum over ranks and return the metrics. Collective: every rank must call this."""
        totals = self.world.all_reduce_sum_(torch.cat([self.sums, self.confusion])).cpu().numpy()
        samples, entropy, divergence, voted = totals[:4]
        confusion = totals[4:].reshape(self.num_classes, self.num_classes).astype(np.int64)
        if not samples == len(split) == confusion.sum():  # not an assertion: also checked under python -O
            raise RuntimeError(f"{samples:.0f} samples counted, but split {split.name} has {len(split)}")
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
            votes_kl=float(divergence / voted) if voted else None,
            bayes_accuracy=bayes_accuracy(split),
        )


def evaluate(predictor: Predictor, batches: Iterable[Batch], split: Split, world: World) -> Metrics:
    """Return the metrics of a split, of which `batches` is this rank's part. Collective: every rank must call this."""
    return count(lambda batch: predict_batch(predictor, batch), batches, split, world).compute(split)


def count(
    predict: Callable[[Batch], Tensor], batches: Iterable[Batch], split: Split, world: World
) -> MetricAccumulator:
    """Return this rank's sums over `batches`. `predict` returns the target branch's logits [n, C]. Not a collective."""
    totals = MetricAccumulator(len(split.classes), world)
    votes = None if split.votes is None else torch.from_numpy(split.votes).to(world.device)
    with world.heartbeat.timed(EVALUATION):
        size = attrgetter("global_size")  # progress over all ranks
        for batch in world.heartbeat.wrap(batches, f"evaluating {split.name}", len(split), "samples", size):
            totals.update(predict(batch), batch.labels, None if votes is None else votes[batch.sample_ids])
        totals.sums.cpu()  # wait for the device before the timer stops
    return totals


def predict_batch(predictor: Predictor, batch: Batch) -> Tensor:
    """Return the target branch's logits [n, C], averaged over the crops of each sample."""
    return mean_of_crops(predictor.predict(batch.flatten_crops().images), batch)


def mean_of_crops(logits: Tensor, batch: Batch) -> Tensor:
    """Average logits with one row per crop over each sample's crops, and return logits [n, C]."""
    return logits.view(-1, batch.num_crops, logits.shape[1]).mean(dim=1) if batch.num_crops > 1 else logits


def bayes_accuracy(split: Split) -> float | None:
    """Return the Bayes-optimal accuracy: the fraction of labels that are the argmax of the true distribution.

    Returns None if the true distributions are unknown.
    """
    if split.distributions is None:
        return None
    return float(np.mean(split.distributions.argmax(axis=1) == split.labels))
