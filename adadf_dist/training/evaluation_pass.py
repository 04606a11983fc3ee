"""One evaluation pass over a split: metrics, predictions of both branches, and features of some samples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from adadf_dist.data.batch import Batch
from adadf_dist.data.dataset import Split
from adadf_dist.distributed.world import World
from adadf_dist.method.model import Output
from adadf_dist.metrics.classification import Metrics
from adadf_dist.metrics.evaluator import MetricAccumulator, count, mean_of_crops
from adadf_dist.metrics.predictions import (
    FloatArray,
    Predictions,
    Rows,
    both_branches,
    gather_answers,
    gather_outputs,
    mean_rows,
)
from adadf_dist.tracking.artifacts import feature_subset


class Network(Protocol):
    def infer_with_features(self, images: Tensor) -> tuple[Output, Tensor]: ...


class SplitPass(NamedTuple):
    """This rank's results from an evaluation pass. Its methods are collectives that merge the results of all ranks."""

    split: Split
    totals: MetricAccumulator
    predictions: list[Rows]
    features: list[Rows]
    """Features of the samples in `feature_subset`."""

    def metrics(self) -> Metrics:
        return self.totals.compute(self.split)

    def answers(self) -> Predictions:
        return gather_answers(self.predictions, len(self.split), self.totals.world)

    def featured(self) -> FloatArray:
        """Return the features [M, F] float32 that the target branch's classifier receives, for the `feature_subset`."""
        samples = len(self.split)
        return gather_outputs(self.features, samples, self.totals.world, feature_subset(samples))


def pass_over(network: Network, batches: Iterable[Batch], split: Split, world: World) -> SplitPass:
    """Run the network on this rank's batches of a split. Not a collective."""
    predictions: list[Rows] = []
    features: list[Rows] = []
    has_features = torch.zeros(len(split), dtype=torch.bool, device=world.device)
    has_features[torch.from_numpy(feature_subset(len(split))).to(world.device)] = True

    def predict(batch: Batch) -> Tensor:
        output, features_of_views = network.infer_with_features(batch.flatten_crops().images)
        predictions.append(both_branches(output, batch))
        samples, values = mean_rows(features_of_views, batch)
        selected = has_features[samples]
        features.append(Rows(samples[selected], values[selected]))
        return mean_of_crops(output.target_logits, batch)

    totals = count(predict, batches, split, world)
    return SplitPass(split, totals, predictions, features)
