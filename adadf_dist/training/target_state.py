"""What the losses need besides class distributions, for the extensions of the method (docs/method.md)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adadf_dist.checkpoint.manager import Stateful
from adadf_dist.config.schema import Config
from adadf_dist.data.batch import Batch
from adadf_dist.data.dataset import Split
from adadf_dist.data.sampling import sampled_counts
from adadf_dist.distributed.world import World
from adadf_dist.method.losses import Losses, TargetInputs, logit_offset
from adadf_dist.method.model import Output
from adadf_dist.method.target_averages import MeanFused, SampleAverages


@dataclass(frozen=True)
class TargetState:
    """Inputs of the losses that extensions need; each is None if its extension is off."""

    config: Config
    prior_offset: Tensor | None = None
    """[C], of `loss.logit_adjustment`."""
    votes: Tensor | None = None
    """[S, C], the vote distribution of each training sample."""
    mean_fused: MeanFused | None = None
    sample_averages: SampleAverages | None = None

    def inputs(self, class_distributions: Tensor, rows: Batch) -> TargetInputs:
        """Return what the losses of a batch are computed from, besides the outputs of the network."""
        loss, samples, mean = self.config.loss, rows.sample_ids, self.mean_fused
        return TargetInputs(
            class_distributions,
            prior_offset=self.prior_offset,
            fused_offset=None if mean is None else logit_offset(mean.mean, loss.target_adjustment),
            sample_averages=None if self.sample_averages is None else self.sample_averages.averages[samples],
            votes=None if self.votes is None else self.votes[samples],
        )

    def observe(self, rows: Batch, output: Output, losses: Losses) -> None:
        """Add a step to the averages, without copying data from the device."""
        if self.mean_fused is not None:
            self.mean_fused.observe(losses.fused_distributions)
        if self.sample_averages is not None:
            self.sample_averages.observe(rows.sample_ids, output.auxiliary_logits)

    def finalize_epoch(self) -> None:
        """Update the averages over the epoch. Collective: every rank must call this."""
        for average in (self.mean_fused, self.sample_averages):
            if average is not None:
                average.finalize_epoch()

    def parts(self) -> dict[str, Stateful]:
        """Return the parts of a checkpoint: only those of extensions that are on."""
        found = {"mean_fused": self.mean_fused, "sample_averages": self.sample_averages}
        return {name: part for name, part in found.items() if part is not None}


def build_target_state(config: Config, train: Split, world: World) -> TargetState:
    """Prepare the enabled extensions for the training split."""
    loss, momentum, classes = config.loss, config.class_distributions.sample_momentum, len(train.classes)
    offset = votes = None
    if loss.logit_adjustment:
        prior = torch.from_numpy(class_prior(train, config.data.sampler))
        offset = logit_offset(prior, loss.logit_adjustment).to(world.device)
    if loss.supervision == "votes":
        votes = torch.from_numpy(vote_distributions(train)).to(world.device)
    return TargetState(
        config,
        offset,
        votes,
        MeanFused(classes, world) if loss.target_adjustment else None,
        SampleAverages(len(train), classes, momentum, world) if momentum else None,
    )


def class_prior(train: Split, sampler: str) -> NDArray[np.float64]:
    """Return the class frequencies [C] of an epoch; a class without samples counts as one sample, not as none."""
    counts = train.class_counts()
    present = counts > 0
    counts[present] = sampled_counts(counts[present], sampler)
    counts = np.maximum(counts, 1)
    return counts / counts.sum()  # type: ignore[no-any-return]


def vote_distributions(train: Split) -> NDArray[np.float32]:
    """Return the normalized votes [S, C]; a sample without votes has its label with probability 1."""
    assert train.votes is not None
    rows = np.where(train.votes.sum(axis=1, keepdims=True) > 0, train.votes, np.eye(len(train.classes))[train.labels])
    return (rows / rows.sum(axis=1, keepdims=True)).astype(np.float32)  # type: ignore[no-any-return]
