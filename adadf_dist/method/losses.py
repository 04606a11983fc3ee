"""Loss functions (equations 3 and 8 to 16, and the extensions of docs/method.md). Stateless, without host sync."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from adadf_dist.config.schema import LossConfig
from adadf_dist.method.model import Output


class LossWeights(NamedTuple):
    """Weights of the two branches' losses in one epoch."""

    kl: float
    """w_kl(e), weight of the KL divergence of the target branch (eq 15)."""
    ce: float
    """w_ce(e), weight of the cross-entropy of the auxiliary branch (eq 16)."""


class Losses(NamedTuple):
    """Losses of one training step on one rank. The mean of each scalar over ranks is its value for the global batch."""

    total: Tensor
    """Scalar, total loss to minimize (eq 14)."""
    kl_divergence: Tensor
    """Scalar, KL divergence loss of the target branch (eq 13)."""
    cross_entropy: Tensor
    """Scalar, cross-entropy loss of the auxiliary branch (eq 3)."""
    rank_regularization: Tensor
    """Scalar, rank regularization loss of the attention weights (eq 9)."""
    attention_weights: Tensor
    """[n], attention weights w', scaled to the range from lambda_min to 1 (eq 11)."""
    fused_distributions: Tensor
    """[n, C], target distributions of the target branch (eq 12, or the variant set by `loss.supervision`)."""
    per_sample: Tensor
    """[n], loss of each sample in the target branch, without gradients."""


class TargetInputs(NamedTuple):
    """What the losses of a step are computed from besides the network's outputs and the labels.

    All but the first are for extensions (docs/method.md), and None if those are off.
    """

    class_distributions: Tensor
    """[C, C], row c is D_c of eq 5."""
    prior_offset: Tensor | None = None
    """[C], added to the logits of the cross entropy: tau_c log prior (`loss.logit_adjustment`)."""
    fused_offset: Tensor | None = None
    """[C], added to the target branch's logits in eq 13: tau_a log m (`loss.target_adjustment`)."""
    sample_averages: Tensor | None = None
    """[n, C], average label distribution of each sample over earlier epochs; zeros for samples without one
    (`class_distributions.sample_momentum`)."""
    votes: Tensor | None = None
    """[n, C], vote distribution of each sample (`loss.supervision = votes`)."""


class Gatherer(Protocol):
    """The part of `World` that the losses use: its size, and `gather`, which assembles the global batch."""

    @property
    def size(self) -> int: ...

    def gather(self, values: Tensor, first: int, total: int) -> Tensor: ...


class BatchSlice(NamedTuple):
    """Position of a rank's rows in the global batch: the index of its first row, and the batch's number of rows."""

    first: int
    total: int


def ramp_weights(epoch: int, epoch_threshold: int) -> LossWeights:
    """Compute the loss weights of an epoch (eq 15 and 16).

    Args:
        epoch: number of the epoch, starting at 1.
        epoch_threshold: E, the first epoch in which the target branch's loss has weight 1.
    """
    if epoch <= epoch_threshold:
        return LossWeights(kl=math.exp(-((1 - epoch / epoch_threshold) ** 2)), ce=1.0)
    return LossWeights(kl=1.0, ce=math.exp(-((1 - epoch_threshold / epoch) ** 2)))


def rank_regularization(attention: Tensor, ratio: float, margin: float) -> Tensor:
    """Compute the hinge loss that makes the mean attention of two groups differ by `margin` (eq 9 and 10).

    Args:
        attention: [N], attention of each sample in the batch, averaged over the two branches (eq 8).
        ratio: beta; the M = floor(beta N) samples with the highest attention form the upper group, ties
            in batch order.
        margin: minimum difference of the group means that gives zero loss.

    Returns:
        Scalar loss, zero if one of the groups is empty.
    """
    upper = math.floor(ratio * len(attention) + 1e-9)
    if upper in (0, len(attention)):
        return attention.sum() * 0.0  # stays in the graph, so that every parameter has a gradient in every step
    ordered = attention.sort(descending=True, stable=True).values
    return (margin - (ordered[:upper].mean() - ordered[upper:].mean())).clamp_min(0.0)


def normalize_attention(attention: Tensor, batch: Tensor, lambda_min: float) -> Tensor:
    """Scale attention weights to the range from `lambda_min` to 1, using the extremes of `batch` (eq 11).

    If all weights in `batch` are equal, the result is 1 for every sample, with zero gradient, instead of 0/0.
    """
    ordered = batch.sort(stable=True).values
    lowest, spread = ordered[0], ordered[-1] - ordered[0]
    equal = spread == 0
    scaled = (attention - lowest) / torch.where(equal, 1.0, spread)
    return torch.where(equal, 1.0, scaled * (1 - lambda_min) + lambda_min)


def logit_offset(distribution: Tensor, tau: float) -> Tensor:
    """Return tau * log of a distribution [C], to add to logits; classes with probability 0 get the smallest normal."""
    return tau * distribution.clamp_min(torch.finfo(distribution.dtype).tiny).log()


def add_offset(logits: Tensor, offset: Tensor | None) -> Tensor:
    """Add an offset [C] to logits [n, C], if there is one."""
    return logits if offset is None else logits + offset.to(logits.dtype)


def prefer_averages(label_distributions: Tensor, averages: Tensor | None) -> Tensor:
    """Replace label distributions [n, C] by the samples' averages [n, C], except where a row of averages is zero."""
    if averages is None:
        return label_distributions
    has_average = averages.sum(dim=1, keepdim=True) > 0
    return torch.where(has_average, averages.to(label_distributions.dtype), label_distributions)


def raise_label_prob(fused: Tensor, labels: Tensor, min_prob: float) -> Tensor:
    """Mix rows [n, C] with the annotated label, as little as needed to give it at least `min_prob`.

    F' = (1 - s) F + s e_y with s = max(0, (a - F_y) / (1 - F_y)); the gradient flows through s too.
    """
    own = fused.gather(1, labels.unsqueeze(1))
    # where F_y < a, 1 - F_y is above 1 - a; elsewhere the numerator is 0, and the clamp keeps gradients finite
    share = (min_prob - own).clamp_min(0.0) / (1 - own).clamp_min(1 - min_prob)
    return torch.lerp(fused, one_hot_rows(labels, fused), share)


def one_hot_rows(labels: Tensor, like: Tensor) -> Tensor:
    """Return labels [n] as rows [n, C] with the classes and the dtype of `like`."""
    return (labels.unsqueeze(1) == torch.arange(like.shape[1], device=labels.device)).to(like.dtype)


def make_targets(
    label_distributions: Tensor, class_distributions: Tensor, weights: Tensor, labels: Tensor, config: LossConfig
) -> Tensor:
    """Return the target distributions [n, C] of the target branch.

    By default, they are the fusion of label and class distributions (eq 12); with `loss.supervision` set to `label` or
    `class`, only one of the two. `loss.min_label_prob` then raises the probability of the annotated label. All inputs
    have one row per sample.
    """
    if config.supervision == "label":
        fused = label_distributions
    elif config.supervision == "class":
        fused = class_distributions
    else:
        fused = torch.lerp(label_distributions, class_distributions, weights.unsqueeze(1))
    if config.min_label_prob:
        fused = raise_label_prob(fused, labels, config.min_label_prob)
    return fused.detach() if config.detach_targets else fused


def kl_divergence(fused: Tensor, target_logits: Tensor) -> Tensor:
    """Return each sample's KL divergence [n] of the prediction from its target distribution (eq 13 before the mean).

    Both `fused`, the target distributions, and `target_logits` are [n, C].
    """
    # clamp: a probability that underflowed to zero has an infinite log
    safe = fused.clamp_min(torch.finfo(fused.dtype).tiny)
    return (fused * (safe.log() - F.log_softmax(target_logits, dim=1))).sum(dim=1)


def annotation_loss(logits: Tensor, labels: Tensor, inputs: TargetInputs, config: LossConfig, reduction: str) -> Tensor:
    """Return the cross entropy of logits [n, C] against the labels [n], or the votes if there are any (eq 3).

    Reduced over the rows by `sum`, or [n] with `none`.
    """
    adjusted = add_offset(logits, inputs.prior_offset)
    target = labels if inputs.votes is None else inputs.votes.to(logits.dtype)
    return F.cross_entropy(adjusted, target, reduction=reduction, label_smoothing=config.label_smoothing)


def baseline_targets(labels: Tensor, like: Tensor, inputs: TargetInputs, config: LossConfig) -> Tensor:
    """Return the targets of the baseline [n, C] in the dtype of `like`: labels or votes, smoothed."""
    rows = one_hot_rows(labels, like) if inputs.votes is None else inputs.votes.to(like.dtype)
    return (1 - config.label_smoothing) * rows + config.label_smoothing / rows.shape[1]


def adadf_loss(
    output: Output,
    labels: Tensor,
    inputs: TargetInputs,
    ramp: LossWeights,
    config: LossConfig,
    ranks: tuple[Gatherer, BatchSlice],
) -> Losses:
    """Compute all losses (eq 14) for one rank's rows of the global batch.

    Args:
        output: outputs of both branches for this rank's n rows; the logits are already weighted by attention.
        labels: [n] int64, annotated classes.
        inputs: class distributions, and what the extensions need.
        ramp: the epoch's loss weights.
        ranks: the world of W ranks, and the position of this rank's rows in the global batch of N rows.

    Returns:
        Losses whose mean over ranks is the global loss. The KL divergence and cross-entropy are sums over this rank's
        rows times W / N; every rank computes the rank regularization from the attention of the whole batch.
    """
    world, place = ranks
    share = world.size / place.total
    auxiliary, target = output.auxiliary_logits, output.target_logits
    cross_entropy = annotation_loss(auxiliary, labels, inputs, config, "sum") * share
    if config.is_baseline:
        per_sample = annotation_loss(auxiliary.detach(), labels, inputs, config, "none")
        zero, weights = torch.zeros_like(cross_entropy), torch.ones_like(per_sample)
        rows = baseline_targets(labels, target, inputs, config)
        return Losses(cross_entropy, zero, cross_entropy, zero, weights, rows, per_sample)

    attention = (output.auxiliary_attention + output.target_attention) / 2  # eq 8
    batch = world.gather(attention, *place) if config.batch_scope == "global" else attention
    rank_loss = rank_regularization(batch, config.rank_ratio, config.rank_margin)
    weights = normalize_attention(attention, batch, config.lambda_min)
    distributions = prefer_averages(F.softmax(auxiliary, dim=1), inputs.sample_averages)
    rows = inputs.class_distributions[labels].to(target.dtype)
    fused = make_targets(distributions, rows, weights, labels, config)
    per_sample = kl_divergence(fused, add_offset(target, inputs.fused_offset))
    divergence = per_sample.sum() * share
    total = ramp.kl * divergence + ramp.ce * cross_entropy + rank_loss
    return Losses(total, divergence, cross_entropy, rank_loss, weights, fused, per_sample.detach())
