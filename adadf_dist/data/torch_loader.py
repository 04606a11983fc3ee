"""The CPU loader: worker processes decode, resize and augment; the rank's device normalises and erases.

8-bit pixels and erasing boxes cross from the workers, a quarter of the bytes of ready floats.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from adadf_dist.config import AugmentConfig
from adadf_dist.data.apply import apply_stage
from adadf_dist.data.augment import NO_AUGMENTATION, draw
from adadf_dist.data.batch import Batch
from adadf_dist.data.format import Split
from adadf_dist.data.jpeg import BadImage, decode
from adadf_dist.data.plan import Samples, rank_bounds
from adadf_dist.data.preprocess import Preprocessing, cut_ten
from adadf_dist.errors import UserError


class Job(NamedTuple):
    """One rank's slice of one global batch: all that a worker needs to know."""

    split: str
    epoch: int
    """Counted from 0; -1: no augmentation."""
    samples: Samples
    first: int
    global_size: int


class Decoded(NamedTuple):
    """A job's faces, or why there are none."""

    images: Tensor
    """[n, 3, H, W] uint8."""
    boxes: Tensor
    """[n, 4] int64, erasing boxes: top, left, bottom, right."""
    labels: Tensor
    samples: Tensor
    first: int
    global_size: int
    problem: str
    """Empty, or the one line for the user: raised in a worker it would come out as a traceback."""


class Faces(Dataset[Decoded]):
    """What a worker process holds: the splits, and how to make pictures of them."""

    def __init__(
        self, splits: Mapping[str, Split], preprocessing: Preprocessing, augment: AugmentConfig, seed: int
    ) -> None:
        self.splits = splits
        self.size = preprocessing.resized
        self.cropped = preprocessing.image_size
        self.augment = augment
        self.seed = seed

    def __getitem__(self, job: Job) -> Decoded:
        return self.decode(job, self.splits[job.split].read)

    def decode(self, job: Job, read: Callable[[int], bytes | memoryview]) -> Decoded:
        """The job's faces, whose encoded images `read` gives by sample number."""
        split = self.splits[job.split]
        samples = torch.from_numpy(job.samples)
        labels = torch.from_numpy(split.labels[job.samples])
        images = np.empty((len(job.samples), 3, self.size, self.size), dtype=np.uint8)
        boxes = torch.zeros(len(job.samples), 4, dtype=torch.int64)
        problem = ""
        for row, sample in enumerate(job.samples.tolist()):
            try:
                images[row], box = self.picture(bytes(read(sample)), sample, job.epoch)
                boxes[row] = torch.tensor(box)
            except BadImage as error:
                shard = split.folder / split.shards[split.places[sample, 0]]
                problem = f"{shard}: face {split.keys[sample]} of split {split.name}: {error}; "
                problem += "python -m shards.verify finds every such face, a new build leaves them out"
                break
        return Decoded(torch.from_numpy(images), boxes, labels, samples, job.first, job.global_size, problem)

    def picture(self, encoded: bytes, sample: int, epoch: int) -> tuple[NDArray[np.uint8], tuple[int, int, int, int]]:
        """A face as the network sees it but for normalisation and erasing: [3, H, W], and the erasing box."""
        size = (self.size, self.size)
        stored = decode(encoded)
        if stored.format != "JPEG":
            raise BadImage(f"is a {stored.format}, but shards hold JPEGs")
        image = stored.convert("RGB")
        if image.size != size:
            image = image.resize(size, Image.Resampling.BILINEAR)
        augmentation = NO_AUGMENTATION if epoch < 0 else draw(self.augment, self.cropped, self.seed, epoch, sample)
        for stage in augmentation.stages:
            image = apply_stage(image, stage)
        pixels = np.asarray(image)
        if augmentation.flip:
            pixels = pixels[:, ::-1]
        return pixels.transpose(2, 0, 1), augmentation.erase


class JobQueue(Sampler[Job]):
    """The jobs that the loader's next pass hands out; workers outlive the pass, so nothing of it lives in them."""

    def __init__(self) -> None:
        self.jobs: Sequence[Job] = ()

    def __iter__(self) -> Iterator[Job]:
        return iter(self.jobs)

    def __len__(self) -> int:
        return len(self.jobs)


class TorchLoader:
    """Batches of a dataset's splits for one rank, by worker processes that live as long as the loader."""

    def __init__(
        self, faces: Faces, preprocessing: Preprocessing, device: torch.device, ranks: tuple[int, int]
    ) -> None:
        """`ranks`: our rank and their number."""
        self.faces = faces
        self.device = device
        self.rank, self.ranks = ranks
        self.preprocessing = preprocessing
        self.queue = JobQueue()
        self._loader: DataLoader[Decoded] | None = None
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(preprocessing.mean, device=device).mul_(255).view(shape)
        self._std = torch.tensor(preprocessing.std, device=device).mul_(255).view(shape)

    def start(self, workers: int, prefetch: int) -> None:
        """Make the workers; they start at the first pass.

        They are forked: it takes no second, shares the index, and they touch neither CUDA nor the process group.
        """
        parallel = workers > 0
        self._loader = DataLoader(
            self.faces,
            batch_size=None,
            sampler=self.queue,
            num_workers=workers,
            prefetch_factor=prefetch if parallel else None,
            persistent_workers=parallel,
            pin_memory=self.device.type == "cuda",
            collate_fn=as_it_is,
            worker_init_fn=settle_worker,
            multiprocessing_context=multiprocessing.get_context("fork") if parallel else None,
        )

    def batches(self, split: str, plan: Sequence[Samples], epoch: int = -1) -> Iterator[Batch]:
        """This rank's slices of the global batches of `plan`; epoch -1 leaves the faces as they are.

        Slices without rows are left out. Raises `UserError` naming a face that does not decode.
        """
        assert self._loader is not None
        self.queue.jobs = [job for samples in plan if len((job := self.slice(split, samples, epoch)).samples)]
        for decoded in self._loader:
            if decoded.problem:
                raise UserError(decoded.problem)
            yield self.finish(decoded)

    def slice(self, split: str, samples: Samples, epoch: int) -> Job:
        first, end = rank_bounds(len(samples), self.rank, self.ranks)
        return Job(split, epoch, samples[first:end], first, len(samples))

    def finish(self, decoded: Decoded) -> Batch:
        """Normalise, cut crops and erase on the device."""
        images, boxes, labels, samples = (t.to(self.device, non_blocking=True) for t in decoded[:4])
        pixels = images.to(self._mean.dtype).sub_(self._mean).div_(self._std)
        if self.preprocessing.ten_crop:
            pixels = cut_ten(pixels, self.preprocessing.image_size)
        places = torch.arange(pixels.shape[-1], device=self.device)
        top, left, bottom, right = (boxes[:, i : i + 1] for i in range(4))
        rows = (places >= top) & (places < bottom)
        columns = (places >= left) & (places < right)
        erased = rows.unsqueeze(2) & columns.unsqueeze(1)
        pixels.masked_fill_(erased.view(len(pixels), *[1] * (pixels.ndim - 3), *erased.shape[1:]), 0.0)
        return Batch(pixels, labels, samples, decoded.first, decoded.global_size)

    def close(self) -> None:
        """End the workers."""
        self._loader = None


def as_it_is(decoded: Any) -> Any:
    return decoded


def settle_worker(number: int) -> None:
    """A worker computes on one thread, and leaves stop signals to its rank: it ends when the rank does."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
