"""The torchvision loader: worker processes decode, resize and augment; the rank's device normalises and erases.

8-bit pixels and erasing boxes cross from the workers, a quarter of the bytes of ready floats.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from adadf_dist.data.apply import apply_stages
from adadf_dist.data.augment import draw
from adadf_dist.data.batch import Batch
from adadf_dist.data.jpeg import BadImage
from adadf_dist.data.loader import (
    Finish,
    Job,
    Read,
    Recipe,
    Replaced,
    Replacements,
    decode_stored,
    replace,
    resize_face,
)
from adadf_dist.data.plan import Samples
from adadf_dist.data.processes import end_with_parent, worker_context
from adadf_dist.errors import UserError


class Decoded(NamedTuple):
    """A job's faces, or why there are none.

    Arrays, not tensors: torch sends tensors between processes through /dev/shm and a socket in TMPDIR, either of which
    may be too small or missing; arrays go through a pipe.
    """

    images: NDArray[np.uint8]
    """[n, 3, H, W]"""
    boxes: NDArray[np.int64]
    """[n, 4], erasing boxes: top, left, bottom, right."""
    labels: NDArray[np.int64]
    samples: NDArray[np.int64]
    first: int
    global_size: int
    replaced: list[Replaced]
    problem: str
    """Empty, or the one line for the user: raised in a worker it would come out as a traceback."""


class Faces(Dataset[Decoded]):
    """What a worker process holds: the splits, and how to make pictures of them."""

    def __init__(self, recipe: Recipe) -> None:
        self.splits = recipe.splits
        self.size = recipe.preprocessing.resized
        self.cropped = recipe.preprocessing.image_size
        self.augment = recipe.augment
        self.seed = recipe.seed

    def __getitem__(self, job: Job) -> Decoded:
        return self.decode(job, self.splits[job.split].read)

    def decode(self, job: Job, read: Read) -> Decoded:
        """The job's faces, whose encoded images `read` gives by sample number."""
        split = self.splits[job.split]
        samples = job.samples.copy()
        images = np.empty((len(samples), self.size, self.size, 3), dtype=np.uint8)
        replaced, problem = [], ""
        try:
            for row, sample in enumerate(samples.tolist()):
                try:
                    images[row] = self.picture(read(sample))
                except BadImage as reason:
                    replaced.append(replace(split, read, self.seed, job.epoch, (sample, reason)))
                    samples[row] = replaced[-1].substitute
                    images[row] = self.picture(read(replaced[-1].substitute))
        except UserError as error:
            problem = str(error)
        boxes = self.augmented(images, samples, job.epoch)
        return Decoded(
            np.ascontiguousarray(images.transpose(0, 3, 1, 2)),
            boxes,
            split.labels[samples],
            samples,
            job.first,
            job.global_size,
            replaced,
            problem,
        )

    def picture(self, encoded: bytes | memoryview) -> NDArray[np.uint8]:
        """A stored face at the size it is augmented in: [H, W, 3]. Raises `BadImage`."""
        return resize_face(decode_stored(encoded), self.size)

    def augmented(self, images: NDArray[np.uint8], samples: Samples, epoch: int) -> NDArray[np.int64]:
        """Apply stages and flips to images [n, H, W, 3] in place. Returns the erasing boxes [n, 4]."""
        drawn = draw(self.augment, self.cropped, self.seed, epoch, samples)
        for row in np.flatnonzero(drawn.kinds.any(axis=1)).tolist():
            images[row] = np.asarray(apply_stages(Image.fromarray(images[row]), drawn, row))
        images[drawn.flips] = images[drawn.flips, :, ::-1]
        return drawn.boxes


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

    def __init__(self, recipe: Recipe) -> None:
        """The workers start at the first pass. Raises `UserError` where none can start."""
        self.recipe = recipe
        self.faces = Faces(recipe)
        self.queue = JobQueue()
        self.replaced = 0
        self._replacements = Replacements(recipe.max_bad_faces)
        self._finish = Finish(recipe.preprocessing, recipe.device)
        self._loader: DataLoader[Decoded] | None = DataLoader(
            self.faces,
            batch_size=None,
            sampler=self.queue,
            persistent_workers=recipe.workers > 0,
            **worker_options(recipe),
        )

    def batches(self, split: str, plan: Sequence[Samples], epoch: int = -1) -> Iterator[Batch]:
        assert self._loader is not None
        self.queue.jobs = self.recipe.jobs(split, plan, epoch)
        for decoded in self._loader:
            yield self.finish(decoded, split)

    def finish(self, decoded: Decoded, split: str) -> Batch:
        """Move to the device and do the last steps there. Raises `UserError` for what a worker could not do."""
        if decoded.problem:
            raise UserError(decoded.problem)
        self.replaced += self._replacements.note(self.recipe.splits[split], decoded.replaced)
        images, boxes, labels, samples = (self.to_device(array) for array in decoded[:4])
        return Batch(self._finish(images, boxes), labels, samples, decoded.first, decoded.global_size)

    def to_device(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.recipe.device.type == "cuda":
            return tensor.pin_memory().to(self.recipe.device, non_blocking=True)
        return tensor

    def close(self) -> None:
        self._loader = None


def worker_options(recipe: Recipe) -> dict[str, Any]:
    """How a `DataLoader` decodes for this rank."""
    parallel = recipe.workers > 0
    return {
        "num_workers": recipe.workers,
        "prefetch_factor": recipe.prefetch if parallel else None,
        "collate_fn": as_it_is,
        "worker_init_fn": settle_worker,
        "multiprocessing_context": worker_context(__name__) if parallel else None,
    }


def as_it_is(decoded: Any) -> Any:
    return decoded


def settle_worker(number: int) -> None:
    """A worker computes on one thread and leaves stop signals to its rank: it ends when the rank does."""
    end_with_parent()
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
