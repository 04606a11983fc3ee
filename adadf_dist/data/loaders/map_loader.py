"""Loader of stored extractor outputs: yields the batches of another loader with maps in place of images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from adadf_dist.data.batch import Batch
from adadf_dist.data.loaders.base import Loader, LoaderConfig
from adadf_dist.data.map_store import MapStore
from adadf_dist.data.sampling import Samples

EVALUATION = -1
"""Number of the variant without augmentation, which is also the epoch for which loaders do not augment."""

Variant = tuple[str, int]
"""Name of a split, and number of the augmentation or `EVALUATION`."""


class MapLoader:
    """Produces one rank's batches of stored maps. Order, batches and labels are those of the loader that it replaces.

    Epoch e uses the maps of augmentation e modulo `period`.
    """

    def __init__(self, replaced: Loader, stores: Mapping[Variant, MapStore], period: int) -> None:
        self.recipe: LoaderConfig = replaced.recipe
        self.num_replaced, replaced.num_replaced = replaced.num_replaced, 0
        self._stores = stores
        self._period = period
        self._opened: dict[Variant, tuple[Tensor, Samples]] = {}

    def batches(self, split: str, plan: Sequence[Samples], epoch: int = -1) -> Iterator[Batch]:
        variant = (split, epoch % self._period if epoch >= 0 else EVALUATION)
        if variant not in self._opened:
            self._opened[variant] = self._stores[variant].load()
        maps, members = self._opened[variant]
        labels = torch.from_numpy(self.recipe.splits[split].labels[members])
        samples = torch.from_numpy(members)
        for job in self.recipe.jobs(split, plan, epoch):
            rows = torch.from_numpy(job.samples)
            inputs, targets, ids = (self._to_device(values.index_select(0, rows)) for values in (maps, labels, samples))
            yield Batch(inputs, targets, ids, job.first, job.global_size)

    def _to_device(self, values: Tensor) -> Tensor:
        if self.recipe.device.type == "cuda":
            return values.pin_memory().to(self.recipe.device, non_blocking=True)
        return values

    def close(self) -> None:
        self._opened.clear()
