"""Equations 4 to 7: the class distributions that one epoch leaves as targets for the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from adadf_dist.config.schema import ClassDistributionConfig


class Reducer(Protocol):
    """What the class distributions need of a world."""

    @property
    def device(self) -> torch.device: ...

    @property
    def rank(self) -> int: ...

    def all_reduce_sum_(self, tensor: Tensor) -> Tensor: ...


class EpochDistributions(NamedTuple):
    """What an epoch's observations came to. All on the CPU, the same bits on every rank."""

    means: Tensor
    """[C, C] float64, eq 4; rows of classes that nobody saw are zero."""
    counts: Tensor
    """[C] float64, samples seen of each class."""
    threshold_met: Tensor
    """[C] bool, whether the class mean was used (eq 5)."""
    distributions: Tensor
    """[C, C] float64, D of eq 5."""


def threshold_distributions(num_classes: int, config: ClassDistributionConfig) -> Tensor:
    """Equation 7: [C, C] float64, row c is T_c, with t on the diagonal."""
    t = config.threshold
    rest = (1 - t if config.off_diagonal == "normalised" else 0.4) / (num_classes - 1)
    rows = torch.full((num_classes, num_classes), rest, dtype=torch.float64)
    return rows.fill_diagonal_(t)


def sharpen(rows: Tensor, temperature: float) -> Tensor:
    """Each row to the power 1/T, normalised to sum to 1."""
    powered = rows.pow(1 / temperature)
    return powered / powered.sum(dim=1, keepdim=True)


def class_distributions(sums: Tensor, counts: Tensor, config: ClassDistributionConfig) -> EpochDistributions:
    """Equations 4 to 7, from each class's summed label distributions [C, C] and sample counts [C] (float64)."""
    means = sums / counts.clamp_min(1).unsqueeze(1)
    met = (means.diagonal() >= config.threshold) & (counts > 0)
    rows = torch.where(met.unsqueeze(1), means, threshold_distributions(len(counts), config))
    if config.sharpen:
        rows = sharpen(rows, config.sharpen)
    return EpochDistributions(means, counts, met, rows)


class ClassDistributions:
    """Observes label distributions over an epoch; `commit` turns them into the next epoch's targets."""

    def __init__(self, num_classes: int, config: ClassDistributionConfig, world: Reducer) -> None:
        self.config = config
        self.world = world
        nothing = torch.zeros(num_classes, num_classes + 1, dtype=torch.float64)
        self.latest = class_distributions(nothing[:, :-1], nothing[:, -1], config)
        """The newest commit; before the first one every class has its threshold distribution."""
        self.targets = self._as_targets()
        """[C, C] float64 on the device: D of eq 5, this epoch's targets."""
        self._pending = nothing.to(world.device)
        """[C, C + 1]: this rank's sums of label distributions, and counts in the last column."""

    @property
    def needs_extra_pass(self) -> bool:
        """Whether eq 4 wants its own pass over the training split instead of what training saw."""
        return self.config.source == "pass"

    def observe(self, auxiliary_logits: Tensor, labels: Tensor, share: float = 1.0) -> None:
        """Add the label distributions (eq 1, 2) of rows [n, C] with labels [n]. Stays on the device.

        `share`: of a face in a row, 1 / 10 where each face has ten crops.
        """
        distributions = auxiliary_logits.detach().double().softmax(dim=1)
        rows = torch.cat([distributions, torch.ones_like(distributions[:, :1])], dim=1)
        classes = torch.arange(len(self._pending), device=labels.device)
        # a matrix product, not index_add_: its order of summation is fixed on a GPU too
        self._pending += (classes.unsqueeze(1) == labels).double() @ (share * rows)

    def finalize_epoch(self) -> EpochDistributions:
        """Sum over ranks, apply eq 4 to 7, make the result current, and start anew."""
        sums = self.world.all_reduce_sum_(self._pending.clone()).cpu()
        self.latest = class_distributions(sums[:, :-1], sums[:, -1], self.config)
        self.targets = self._as_targets()
        self._pending.zero_()
        return self.latest

    def state_dict(self) -> dict[str, Tensor]:
        """Targets and the sums so far over all ranks. A collective."""
        return {"pending": self.world.all_reduce_sum_(self._pending.clone()).cpu(), **self.latest._asdict()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The pending sums go to rank 0 alone: on every rank they would count once a rank."""
        self.latest = EpochDistributions(**{name: state[name] for name in EpochDistributions._fields})
        self.targets = self._as_targets()
        self._pending.zero_()
        if self.world.rank == 0:
            self._pending.copy_(state["pending"])

    def _as_targets(self) -> Tensor:
        return self.latest.distributions.to(self.world.device)
