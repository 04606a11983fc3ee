"""Loader interface and configuration, replacement of corrupt training samples, and final transform on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from adadf_dist.config.schema import AugmentConfig
from adadf_dist.console.logs import EVERY_RANK, get_logger
from adadf_dist.data.batch import Batch
from adadf_dist.data.dataset import Split
from adadf_dist.data.jpeg import InvalidImageError, decode
from adadf_dist.data.preprocessing import Preprocessing, ten_crop
from adadf_dist.data.sampling import Samples, rank_slice, replacement_candidates
from adadf_dist.errors import UserError

logger = get_logger(__name__)

Read = Callable[[int], bytes | memoryview]
"""Function that returns a sample's encoded image, given the sample's index."""


class Loader(Protocol):
    """Produces one rank's batches from the splits of a dataset."""

    recipe: LoaderConfig
    num_replaced: int
    """Number of training samples replaced since the last reset because they failed to decode."""

    def batches(self, split: str, plan: Sequence[Samples], epoch: int = -1) -> Iterator[Batch]:
        """Yield this rank's slices of the global batches of `plan`; epoch -1 disables augmentation.

        Empty slices are skipped. If a sample fails to decode and cannot be replaced, raises `UserError` naming it.
        """

    def close(self) -> None:
        """Stop background work."""


@dataclass(frozen=True)
class LoaderConfig:
    """Settings shared by all loaders."""

    splits: Mapping[str, Split]
    preprocessing: Preprocessing
    augment: AugmentConfig
    seed: int
    device: torch.device
    rank: int
    ranks: int
    batch_size: int
    """Maximum number of samples per global batch."""
    workers: int
    prefetch: int
    max_bad_samples: int

    def jobs(self, split: str, plan: Sequence[Samples], epoch: int) -> list[LocalBatch]:
        """Return this rank's nonempty slices of the global batches in `plan`."""
        bounds = (rank_slice(len(samples), self.rank, self.ranks) for samples in plan)
        slices = (
            LocalBatch(split, epoch, samples[first:end], first, len(samples))
            for samples, (first, end) in zip(plan, bounds, strict=True)
        )
        return [job for job in slices if len(job.samples)]


class LocalBatch(NamedTuple):
    """One rank's slice of one global batch, as sent to a worker."""

    split: str
    epoch: int
    """Epoch, counted from 0; -1 disables augmentation."""
    samples: Samples
    first: int
    global_size: int


class Replacement(NamedTuple):
    """A training sample that failed to decode, and its replacement."""

    sample: int
    substitute: int
    reason: str


def decode_image(encoded: bytes | memoryview) -> Image.Image:
    """Decode a stored image to RGB. Raises `InvalidImageError` if it is not a valid JPEG."""
    image = decode(bytes(encoded))
    if image.format != "JPEG":
        raise InvalidImageError(f"is a {image.format} image, but shards must contain only JPEGs")
    return image.convert("RGB")


def resize_image(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Return the pixels of an RGB image resized to a square, [size, size, 3]."""
    target = (size, size)
    return np.asarray(image if image.size == target else image.resize(target, Image.Resampling.BILINEAR))


def find_replacement(
    split: Split, read: Read, seed: int, epoch: int, bad: tuple[int, InvalidImageError]
) -> Replacement:
    """Find a replacement for a bad sample: the first decodable sample of its class in a seeded random order.

    Raises `UserError` if no other sample of the class decodes. Always raises it in evaluation (epoch -1), where a
    missing or repeated sample would falsify the metrics.
    """
    sample, reason = bad
    if epoch >= 0:
        for substitute in replacement_candidates(split.labels, sample, seed, epoch):
            try:
                decode_image(read(substitute))
            except InvalidImageError:
                continue
            return Replacement(sample, substitute, str(reason))
    raise UserError(describe_bad_sample(split, sample, str(reason)))


def describe_bad_sample(split: Split, sample: int, reason: str) -> str:
    shard = split.folder / split.shards[split.locations[sample, 0]]
    return (
        f"{shard}: sample {split.keys[sample]} ({split.name} split): {reason}. Run python -m shards.verify to list all "
        "bad samples; rebuilding the dataset skips them"
    )


class ReplacementLog:
    """Counts a rank's replaced samples, warns once about each, and raises an error if there are too many."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[tuple[str, int]] = set()

    def record(self, split: Split, replaced: Sequence[Replacement]) -> int:
        """Count and report replacements, and return their number. Raises `UserError` if the limit is exceeded."""
        for sample, substitute, reason in replaced:
            if (split.name, sample) in self._known:
                continue
            self._known.add((split.name, sample))
            if len(self._known) > self._limit:
                allowed = f" (data.max_bad_samples is {self._limit})"
                raise UserError(describe_bad_sample(split, sample, reason) + allowed)
            text = f"{describe_bad_sample(split, sample, reason)}; replaced by sample {split.keys[substitute]}"
            logger.warning(text, extra=EVERY_RANK)
        return len(replaced)


class DeviceTransform:
    """Final steps of preprocessing on the rank's device: normalize, crop, erase."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        self.preprocessing = preprocessing
        shape = (1, 3, 1, 1)
        # computed on the host: the loader's thread reads them on another CUDA stream than this one's
        self._mean = torch.tensor(preprocessing.mean).mul_(255).view(shape).to(device)
        self._std = torch.tensor(preprocessing.std).mul_(255).view(shape).to(device)

    def __call__(self, images: Tensor, boxes: Tensor) -> Tensor:
        """Turn images, uint8 [n, 3, S, S], into network input and erase `boxes`, int64 [n, 4], from it."""
        pixels = self.normalize(images)
        if self.preprocessing.ten_crop:
            pixels = ten_crop(pixels, self.preprocessing.image_size)
        positions = torch.arange(pixels.shape[-1], device=pixels.device)
        top, left, bottom, right = (boxes[:, i : i + 1] for i in range(4))
        rows = (positions >= top) & (positions < bottom)
        columns = (positions >= left) & (positions < right)
        erased = rows.unsqueeze(2) & columns.unsqueeze(1)
        return pixels.masked_fill_(erased.view(len(pixels), *[1] * (pixels.ndim - 3), *erased.shape[1:]), 0.0)

    def normalize(self, images: Tensor) -> Tensor:
        return images.to(self._mean.dtype).sub_(self._mean).div_(self._std)
