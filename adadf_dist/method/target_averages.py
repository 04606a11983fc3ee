"""Averages of distributions over the training samples, for two extensions of the method (docs/method.md)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from adadf_dist.method.class_distributions import Reducer, restore_pending


class MeanFused:
    """Mean fused distribution m of an epoch, used in the next one (`loss.target_adjustment`)."""

    def __init__(self, num_classes: int, world: Reducer) -> None:
        self.world = world
        self.mean = torch.full((num_classes,), 1 / num_classes, dtype=torch.float64, device=world.device)
        """[C], m of the last finalized epoch; uniform before the first one."""
        self._pending = torch.zeros(num_classes + 1, dtype=torch.float64, device=world.device)
        """[C + 1]: sums of fused distributions on this rank, and the number of rows."""

    def observe(self, fused: Tensor) -> None:
        """Add fused distributions [n, C], without moving data off the device."""
        self._pending[:-1] += fused.detach().double().sum(dim=0)
        self._pending[-1] += len(fused)

    def finalize_epoch(self) -> None:
        """Sum over ranks, set the new mean, reset. Collective: every rank must call this."""
        sums = self.world.all_reduce_sum_(self._pending.clone())
        self.mean = sums[:-1] / sums[-1]
        self._pending.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the mean and the current sums over all ranks. Collective: every rank must call this."""
        return {"mean": self.mean.cpu(), "pending": self.world.all_reduce_sum_(self._pending.clone()).cpu()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state. Only rank 0 restores the pending sums; the all-reduce adds zeros from the others."""
        self.mean = state["mean"].to(self.world.device)
        restore_pending(self._pending, state["pending"], self.world)


class SampleAverages:
    """Average label distribution of each sample over epochs (`class_distributions.sample_momentum`).

    A sample's mean over its rows of an epoch (crops, repetitions) updates its average when the epoch ends:
    average = momentum * average + (1 - momentum) * mean, or the mean if it has no average yet.
    """

    def __init__(self, num_samples: int, num_classes: int, momentum: float, world: Reducer) -> None:
        self.momentum = momentum
        self.world = world
        self.averages = torch.zeros(num_samples, num_classes, device=world.device)
        """[S, C]; a row is zero until an epoch that drew the sample has ended."""
        self._pending = torch.zeros(num_samples, num_classes + 1, device=world.device)
        """[S, C + 1]: sums of label distributions on this rank, with counts in the last column."""

    @torch.no_grad()
    def observe(self, sample_ids: Tensor, auxiliary_logits: Tensor) -> None:
        """Add the label distributions of rows [n, C] of the samples [n], without moving data off the device."""
        distributions = auxiliary_logits.softmax(dim=1)
        rows = torch.cat([distributions, torch.ones_like(distributions[:, :1])], dim=1)
        self._pending.index_add_(0, sample_ids, rows.to(self._pending.dtype))

    def finalize_epoch(self) -> None:
        """Sum over ranks, update the averages, reset. Collective: every rank must call this."""
        sums = self.world.all_reduce_sum_(self._pending.clone())
        counts = sums[:, -1:]
        means = sums[:, :-1] / counts.clamp_min(1)
        is_new = self.averages.sum(dim=1, keepdim=True) == 0
        updated = torch.where(is_new, means, torch.lerp(means, self.averages, self.momentum))
        self.averages = torch.where(counts > 0, updated, self.averages)
        self._pending.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages and the current sums over all ranks. Collective: every rank must call this."""
        return {"averages": self.averages.cpu(), "pending": self.world.all_reduce_sum_(self._pending.clone()).cpu()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state. Only rank 0 restores the pending sums; the all-reduce adds zeros from the others."""
        self.averages = state["averages"].to(self.world.device)
        restore_pending(self._pending, state["pending"], self.world)
