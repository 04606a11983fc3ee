"""Torch loader: worker processes decode, resize and augment images; the rank's device normalizes and erases.

Workers send 8-bit pixels and erasing boxes, which take a quarter of the space of float images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from adadf_dist.data.augment.apply_pillow import apply_stages
from adadf_dist.data.augment.policy import sample_augmentations
from adadf_dist.data.batch import Batch
from adadf_dist.data.jpeg import InvalidImageError
from adadf_dist.data.loaders.base import (
    DeviceTransform,
    LoaderConfig,
    LocalBatch,
    Read,
    Replacement,
    ReplacementLog,
    decode_image,
    find_replacement,
    resize_image,
)
from adadf_dist.data.sampling import Samples
from adadf_dist.data.workers.pass_pool import WorkerPool
from adadf_dist.data.workers.process import DeadWorkerError
from adadf_dist.errors import UserError


class DecodedBatch(NamedTuple):
    """A job's decoded and augmented images, or an error.

    The fields are arrays, not tensors: torch sends tensors between processes through /dev/shm, which may be too small,
    whereas arrays go through a pipe.
    """

    images: NDArray[np.uint8]
    """[n, 3, H, W], pixels after the stages and flips of augmentation."""
    boxes: NDArray[np.int64]
    """[n, 4], boxes to erase: top, left, bottom, right."""
    labels: NDArray[np.int64]
    samples: NDArray[np.int64]
    first: int
    global_size: int
    replaced: list[Replacement]
    error: str
    """One-line error message for the user, or empty. An exception raised in a worker would appear as a traceback."""


class DecodeDataset:
    """State of a worker process: the splits and the decoding and augmentation settings."""

    def __init__(self, recipe: LoaderConfig) -> None:
        self.splits = recipe.splits
        self.size = recipe.preprocessing.resized
        self.image_size = recipe.preprocessing.image_size
        self.augment = recipe.augment
        self.seed = recipe.seed

    def decode(self, job: LocalBatch, read: Read) -> DecodedBatch:
        """Decode and augment the job's samples; `read` returns the encoded image of a sample, given its index."""
        split = self.splits[job.split]
        samples = job.samples.copy()
        images = np.empty((len(samples), self.size, self.size, 3), dtype=np.uint8)
        replaced, error_text = [], ""
        try:
            for row, sample in enumerate(samples.tolist()):
                try:
                    images[row] = self.decode_and_resize(read(sample))
                except InvalidImageError as reason:
                    replaced.append(find_replacement(split, read, self.seed, job.epoch, (sample, reason)))
                    samples[row] = replaced[-1].substitute
                    images[row] = self.decode_and_resize(read(replaced[-1].substitute))
        except UserError as error:
            error_text = str(error)
        boxes = self.augment_images(images, samples, job.epoch)
        return DecodedBatch(
            np.ascontiguousarray(images.transpose(0, 3, 1, 2)),
            boxes,
            split.labels[samples],
            samples,
            job.first,
            job.global_size,
            replaced,
            error_text,
        )

    def decode_and_resize(self, encoded: bytes | memoryview) -> NDArray[np.uint8]:
        """Decode a stored image and resize it to the size for augmentation, [H, W, 3]. Raises `InvalidImageError`."""
        return resize_image(decode_image(encoded), self.size)

    def augment_images(self, images: NDArray[np.uint8], samples: Samples, epoch: int) -> NDArray[np.int64]:
        """Apply stages and flips to images [n, H, W, 3] in place. Returns the boxes to erase, [n, 4]."""
        augmentation = sample_augmentations(self.augment, self.image_size, self.seed, epoch, samples)
        for row in np.flatnonzero(augmentation.kinds.any(axis=1)).tolist():
            images[row] = np.asarray(apply_stages(Image.fromarray(images[row]), augmentation, row))
        images[augmentation.flips] = images[augmentation.flips, :, ::-1]
        return augmentation.boxes


Task = Callable[[DecodeDataset], Iterator[DecodedBatch]]
"""One worker's share of a pass: a function that takes the worker's state and yields decoded batches."""


@dataclass(frozen=True)
class DecodeJobs:
    """One worker's share of a pass over samples stored on disk."""

    jobs: Sequence[LocalBatch]

    def __call__(self, decoder: DecodeDataset) -> Iterator[DecodedBatch]:
        return (decoder.decode(job, decoder.splits[job.split].read) for job in self.jobs)


class TorchLoader:
    """Yields one rank's batches using worker processes that live as long as the loader."""

    def __init__(self, recipe: LoaderConfig) -> None:
        """Start the workers. Raises `UserError` if they cannot start."""
        self.recipe = recipe
        self.decoder = DecodeDataset(recipe)
        self.num_replaced = 0
        self._replacements = ReplacementLog(recipe.max_bad_samples)
        self._finish = DeviceTransform(recipe.preprocessing, recipe.device)
        self._workers: WorkerPool[DecodeDataset, DecodedBatch] | None = None
        if recipe.workers:
            self._workers = WorkerPool(self.decoder, recipe.workers, recipe.prefetch, __name__)

    def batches(self, split: str, plan: Sequence[Samples], epoch: int = -1) -> Iterator[Batch]:
        jobs, workers = self.recipe.jobs(split, plan, epoch), max(self.recipe.workers, 1)
        for decoded in self.run([DecodeJobs(jobs[worker::workers]) for worker in range(workers)]):
            yield self.finish(decoded, split)

    def run(self, tasks: Sequence[Task]) -> Iterator[DecodedBatch]:
        """Run one task per worker and yield their results in turn. Raises `DeadWorkerError` if a worker dies."""
        if self._workers is None:
            (task,) = tasks
            yield from task(self.decoder)
            return
        try:
            yield from self._workers.run(tasks)
        except DeadWorkerError as error:
            raise DeadWorkerError(
                f"{error}; if it ran out of memory, lower data.num_workers (now {self.recipe.workers}) or "
                f"data.prefetch_batches (now {self.recipe.prefetch})"
            ) from None

    def finish(self, decoded: DecodedBatch, split: str) -> Batch:
        """Move a batch to the device and run the final steps there. Raises `UserError` if decoding failed."""
        if decoded.error:
            raise UserError(decoded.error)
        self.num_replaced += self._replacements.record(self.recipe.splits[split], decoded.replaced)
        images, boxes, labels, samples = (self.to_device(array) for array in decoded[:4])
        return Batch(self._finish(images, boxes), labels, samples, decoded.first, decoded.global_size)

    def to_device(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.recipe.device.type == "cuda":
            return tensor.pin_memory().to(self.recipe.device, non_blocking=True)
        return tensor

    def close(self) -> None:
        if self._workers is not None:
            self._workers.close()
