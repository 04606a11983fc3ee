"""Class distributions (equations 4 to 7), computed during one epoch and used as targets in the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from adadf_dist.config.schema import ClassDistributionConfig


class Reducer(Protocol):
    """The part of `World` that class distributions use: device, rank and sum over ranks."""

    @property
    def device(self) -> torch.device: ...

    @property
    def rank(self) -> int: ...

    def all_reduce_sum_(self, tensor: Tensor) -> Tensor: ...


class EpochDistributions(NamedTuple):
    """Class distributions of one epoch, for C classes. Tensors are on the CPU and bitwise equal on all ranks."""

    means: Tensor
    """[C, C] float64, mean label distribution of each class (eq 4); zero for classes without samples."""
    counts: Tensor
    """[C] float64, number of samples of each class."""
    threshold_met: Tensor
    """[C] bool, whether the class mean met the threshold and was used as the class distribution (eq 5)."""
    distributions: Tensor
    """[C, C] float64, class distributions D; row c is the one for class c (eq 5)."""


def threshold_distributions(num_classes: int, config: ClassDistributionConfig) -> Tensor:
    """Return the threshold distributions (eq 7), [C, C] float64. Row c is T_c, with the threshold t at class c."""
    t = config.threshold
    rest = (1 - t if config.off_diagonal == "normalized" else 0.4) / (num_classes - 1)
    rows = torch.full((num_classes, num_classes), rest, dtype=torch.float64)
    return rows.fill_diagonal_(t)


def sharpen(rows: Tensor, temperature: float) -> Tensor:
    """Return the rows raised to the power 1 / `temperature` and normalized to sum to 1."""
    powered = rows.pow(1 / temperature)
    return powered / powered.sum(dim=1, keepdim=True)


def class_distributions(sums: Tensor, counts: Tensor, config: ClassDistributionConfig) -> EpochDistributions:
    """Compute the class distributions (eq 4 to 7).

    Args:
        sums: [C, C] float64, sum of the label distributions of each class's samples.
        counts: [C] float64, number of samples of each class.
        config: threshold and options of the class distributions.
    """
    means = sums / counts.clamp_min(1).unsqueeze(1)
    met = (means.diagonal() >= epoch_threshold(means.diagonal(), counts, config)) & (counts > 0)
    rows = torch.where(met.unsqueeze(1), means, threshold_distributions(len(counts), config))
    if config.sharpen_temperature:
        rows = sharpen(rows, config.sharpen_temperature)
    return EpochDistributions(means, counts, met, rows)


def epoch_threshold(degrees: Tensor, counts: Tensor, config: ClassDistributionConfig) -> Tensor | float:
    """Return the threshold of eq 5: t, or the lower of t and r times the mean of the class degrees [C].

    Classes without samples are not part of the mean.
    """
    if not config.relative_threshold:
        return config.threshold
    mean = degrees.sum() / (counts > 0).sum().clamp_min(1)  # degrees of classes without samples are zero
    return (config.relative_threshold * mean).clamp_max(config.threshold)


class ClassDistributions:
    """Accumulates label distributions over an epoch. `finalize_epoch` turns them into the next epoch's targets."""

    def __init__(self, num_classes: int, config: ClassDistributionConfig, world: Reducer) -> None:
        self.config = config
        self.world = world
        nothing = torch.zeros(num_classes, num_classes + 1, dtype=torch.float64)
        self.latest = class_distributions(nothing[:, :-1], nothing[:, -1], config)
        """Class distributions of the last finished epoch; threshold distributions during the first epoch."""
        self.targets = self._as_targets()
        """[C, C] float64 on the device, class distributions D (eq 5) used as targets in the current epoch."""
        self._pending = nothing.to(world.device)
        """[C, C + 1], this rank's sums of label distributions per class; the last column has the sample counts."""

    @property
    def needs_extra_pass(self) -> bool:
        """Whether the class means (eq 4) require an extra pass over the training split."""
        return self.config.source == "second_pass"

    def observe(self, auxiliary_logits: Tensor, labels: Tensor, share: float = 1.0) -> None:
        """Add a batch's label distributions (eq 1 and 2) to the sums, without moving data off the device.

        Args:
            auxiliary_logits: [n, C], logits of the auxiliary branch.
            labels: [n], annotated classes.
            share: weight of each row: 1, or 1/10 with ten crops per image.
        """
        distributions = auxiliary_logits.detach().double().softmax(dim=1)
        rows = torch.cat([distributions, torch.ones_like(distributions[:, :1])], dim=1)
        classes = torch.arange(len(self._pending), device=labels.device)
        # a matrix product, not index_add_: its summation order is deterministic on a GPU too
        self._pending += (classes.unsqueeze(1) == labels).double() @ (share * rows)

    def finalize_epoch(self) -> EpochDistributions:
        """Compute the class distributions (eq 4 to 7) over all ranks, use them as targets, and reset the sums.

        Collective: every rank must call this.
        """
        sums = self.world.all_reduce_sum_(self._pending.clone()).cpu()
        self.latest = class_distributions(sums[:, :-1], sums[:, -1], self.config)
        self.targets = self._as_targets()
        self._pending.zero_()
        return self.latest

    def state_dict(self) -> dict[str, Tensor]:
        """Return the latest distributions and the sums over all ranks. Collective: every rank must call this."""
        return {"pending": self.world.all_reduce_sum_(self._pending.clone()).cpu(), **self.latest._asdict()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a saved state. Only rank 0 gets the sums, because the reduction adds those of all ranks."""
        self.latest = EpochDistributions(**{name: state[name] for name in EpochDistributions._fields})
        self.targets = self._as_targets()
        restore_pending(self._pending, state["pending"], self.world)

    def _as_targets(self) -> Tensor:
        return self.latest.distributions.to(self.world.device)


def restore_pending(pending: Tensor, saved: Tensor, world: Reducer) -> None:
    """Set a rank's sums: those of the checkpoint on rank 0, zeros on other ranks."""
    pending.zero_()
    if world.rank == 0:
        pending.copy_(saved)
