"""What a loader hands to training: one rank's slice of a global batch."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Rows `first` to `first + n` of a global batch of `global_size`, on the rank's device."""

    images: Tensor
    """[n, 3, H, W] (or [n, 10, 3, H, W] where each face is cropped ten times) float32, normalised."""
    labels: Tensor
    """[n] int64."""
    samples: Tensor
    """[n] int64, sample numbers within the split."""
    first: int
    """Place of the first row in the global batch."""
    global_size: int
    """N: rows of the global batch over all ranks."""
