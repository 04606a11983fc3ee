"""The batches that loaders yield; each is one rank's slice of a global batch."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Samples `offset` to `offset + n` of a global batch of `global_size`, on the rank's device."""

    images: Tensor
    """[n, 3, H, W] float32, normalized; [n, K, 3, H, W] with K views per sample (ten crops, or image and mirror).
    With `model.cached_augmentations`: the extractor's stored outputs, [n, ...]."""
    labels: Tensor
    """[n] int64, the class of each sample."""
    sample_ids: Tensor
    """[n] int64, the index of each sample within its split."""
    offset: int
    """Index of the first sample within the global batch."""
    global_size: int
    """Number of samples in the global batch, summed over all ranks."""

    @property
    def num_crops(self) -> int:
        """Number of views per sample: the number of crops, or 1 if `images` has no dimension for crops."""
        return self.images.shape[1] if self.images.ndim == 5 else 1

    def flatten_crops(self) -> Batch:
        """Return a batch in which each crop is a separate sample: N in the paper's equations 9 to 13 counts crops."""
        if self.images.ndim != 5:
            return self
        k = self.num_crops
        images = self.images.flatten(0, 1)
        labels, samples = (t.repeat_interleave(k, output_size=len(images)) for t in (self.labels, self.sample_ids))
        return Batch(images, labels, samples, self.offset * k, self.global_size * k)
