"""Batches that a loader yields: one rank's slice of a global batch."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Samples `offset` to `offset + n` of a global batch of `global_size`, on the rank's device."""

    images: Tensor
    """[n, 3, H, W] float32, normalized; [n, K, 3, H, W] with K views per sample (ten crops, or two mirror images)."""
    labels: Tensor
    """[n] int64, class index of each sample."""
    sample_ids: Tensor
    """[n] int64, sample indices within the split."""
    offset: int
    """Index of the first sample within the global batch."""
    global_size: int
    """Size of the global batch over all ranks."""

    @property
    def num_crops(self) -> int:
        """Views per sample: 1, or the number of crops."""
        return self.images.shape[1] if self.images.ndim == 5 else 1

    def flatten_crops(self) -> Batch:
        """Return each crop as a separate sample, as the network and losses see it: N in eqs 9 to 13 counts crops."""
        if self.images.ndim == 4:
            return self
        k = self.num_crops
        images = self.images.flatten(0, 1)
        labels, samples = (t.repeat_interleave(k, output_size=len(images)) for t in (self.labels, self.sample_ids))
        return Batch(images, labels, samples, self.offset * k, self.global_size * k)
