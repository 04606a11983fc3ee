"""What a loader hands to training: one rank's slice of a global batch."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Faces `first` to `first + n` of a global batch of `global_size`, on the rank's device."""

    images: Tensor
    """[n, 3, H, W] (or [n, K, 3, H, W] where each face is seen K times: ten crops, or two mirror images) float32,
    normalised."""
    labels: Tensor
    """[n] int64."""
    sample_ids: Tensor
    """[n] int64, sample numbers within the split."""
    offset: int
    """Place of the first face in the global batch."""
    global_size: int
    """Faces of the global batch over all ranks."""

    @property
    def num_crops(self) -> int:
        """Rows a face has in the network: 1, or as many as it has crops."""
        return self.images.shape[1] if self.images.ndim == 5 else 1

    def flatten_crops(self) -> Batch:
        """Each crop as a face of its own, as the network and the losses see it: N of eqs 9 to 13 counts crops."""
        if self.images.ndim == 4:
            return self
        k = self.num_crops
        images = self.images.flatten(0, 1)
        labels, samples = (t.repeat_interleave(k, output_size=len(images)) for t in (self.labels, self.sample_ids))
        return Batch(images, labels, samples, self.offset * k, self.global_size * k)
