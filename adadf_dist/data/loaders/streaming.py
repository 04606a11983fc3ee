"""Stream training samples from remote tars through `webdataset`, front to back, without storing them on disk.

An epoch's tars, in a random order that depends on (seed, epoch), form one long sequence of samples. Each worker of each
rank reads a contiguous part of this sequence with exactly the length that it needs, and may start in the middle of a
tar. Every sample is therefore read once per epoch, and every rank yields its slice of every global batch. As in the
other loaders, a sample's augmentation depends only on the seed, the epoch and its index. `STREAMING_LIMITATIONS` lists
the drawbacks compared to a cache.
"""

from __future__ import annotations

import random
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from webdataset import shuffle
from webdataset.tariterators import group_by_keys, tar_file_expander

from adadf_dist.data.batch import Batch
from adadf_dist.data.dataset import Split
from adadf_dist.data.jpeg import InvalidImageError
from adadf_dist.data.loaders.base import LocalBatch
from adadf_dist.data.loaders.torch_loader import DecodeDataset, DecodedBatch, TorchLoader
from adadf_dist.data.remote.client import Remote
from adadf_dist.data.sampling import Samples, rank_slice
from adadf_dist.errors import UserError

STREAMING_LIMITATIONS = (
    "training tars are streamed: each sample is read once per epoch, but the order depends on the numbers of ranks and "
    "workers, data.sampler must be all, and resuming mid-epoch is exact only with the same numbers of ranks and workers"
)

TARS, BUFFER = 3, 4
"""Keys of the random streams for the order of tars and the shuffle buffer; sampling.py defines the other keys."""

HEADER = tarfile.BLOCKSIZE
"""Size in bytes of a USTAR member's header, which directly precedes its data. A sample's first member is KEY.jpg."""


class SampleRun(NamedTuple):
    """Consecutive samples of one tar, read as one range of bytes."""

    shard: int
    start: int
    """Offset of the first byte in the tar."""
    end: int
    samples: Samples
    """Sample indices within the split, in stored order."""


class StreamSlice(NamedTuple):
    """One rank's slice of a global batch."""

    number: int
    """Index of the global batch within the epoch, counted from 0."""
    first: int
    rows: int
    global_size: int


@dataclass(frozen=True)
class StreamPlan:
    """Plan of which samples each worker of each rank reads in an epoch. Every rank computes the same plan."""

    split: Split
    sizes: Sequence[int]
    """Sizes of the global batches, which sum to the split's size."""
    seed: int
    number: int
    """Epoch, counted from 0."""

    def slices(self, rank: int, ranks: int) -> list[StreamSlice]:
        """Return the rank's slice of each global batch."""
        bounds = (rank_slice(size, rank, ranks) for size in self.sizes)
        return [
            StreamSlice(number, first, end - first, size)
            for number, ((first, end), size) in enumerate(zip(bounds, self.sizes, strict=True))
        ]

    def runs(self, rank: int, ranks: int, worker: int, workers: int) -> list[SampleRun]:
        """Return the runs that worker number `worker` of a rank reads, in order, to fill every `workers`-th slice."""
        lengths = [
            sum(part.rows for part in self.slices(r, ranks)[n::workers]) for r in range(ranks) for n in range(workers)
        ]
        own = rank * workers + worker
        start = sum(lengths[:own])
        return self.cut(start, start + lengths[own])

    def cut(self, start: int, end: int) -> list[SampleRun]:
        """Return the runs that cover positions `start` to `end` (exclusive) of the epoch's sample sequence."""
        shards, offsets = self.split.locations[:, 0], self.split.locations[:, 1]
        stored = np.lexsort((offsets, shards))
        edges = np.searchsorted(shards[stored], np.arange(len(self.split.shards) + 1))
        runs = []
        position = 0
        for shard in np.random.default_rng((self.seed, TARS, self.number)).permutation(len(self.split.shards)):
            members = stored[edges[shard] : edges[shard + 1]]
            first, last = max(start - position, 0), min(end - position, len(members))
            if first < last:
                first_byte = int(offsets[members[first]]) - HEADER
                # skip what follows the last image (its label and metadata)
                image = self.split.locations[members[last - 1]]
                end_byte = int(image[1] + image[2] + -image[2] % HEADER)
                runs.append(SampleRun(int(shard), first_byte, end_byte, members[first:last]))
            position += len(members)
        return runs


class ChunkedReader:
    """File-like object that reads from an iterator of byte chunks, for use with `tarfile`."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")
        self.problem: UserError | None = None
        """Error that ended the stream early; stored because webdataset changes the messages of errors it passes on."""

    def read(self, number: int) -> bytes:
        parts = []
        while number > 0:
            if not self._rest:
                self._rest = memoryview(self._next())
                if not self._rest:
                    break
            parts.append(self._rest[:number])
            number -= len(parts[-1])
            self._rest = self._rest[len(parts[-1]) :]
        return b"".join(parts)

    def _next(self) -> bytes:
        try:
            return next(self._chunks, b"")
        except UserError as error:
            self.problem = error
            raise OSError from None


class EncodedSample(NamedTuple):
    sample: int
    image: bytes
    """Encoded image."""


def read_runs(remote: Remote, split: Split, runs: Sequence[SampleRun]) -> Iterator[EncodedSample]:
    """Yield the samples of the runs, in order. Raises `UserError` if a tar does not match its index."""
    for run in runs:
        file = split.shards[run.shard]
        reader = ChunkedReader(remote.chunks(file, run.start, run.end))
        members = group_by_keys(tar_file_expander(iter([{"url": file, "stream": reader}]), select_files=is_image))
        for sample in run.samples.tolist():
            try:
                record: dict[str, Any] = next(members, {"__key__": "none"})
            except (OSError, tarfile.TarError, ValueError) as error:
                if reader.problem is not None:
                    raise reader.problem from None
                record = {"__key__": type(error).__name__}
            key = str(split.keys[sample])
            if record["__key__"] != key:
                raise UserError(
                    f"{remote.url_for(file)}: tar does not match its index (expected sample {key}, "
                    f"found {record['__key__']}); re-upload the dataset, with dataset.json last"
                )
            yield EncodedSample(sample, record["jpg"])


def is_image(name: str) -> bool:
    return name.endswith(".jpg")


@dataclass(frozen=True)
class DecodeStream:
    """One worker's share of its rank's pass over an epoch."""

    remote: Remote
    epoch: StreamPlan
    ranks: tuple[int, int]
    """This rank and the number of ranks."""
    num_workers: tuple[int, int]
    """This worker's index and the number of workers."""
    buffer: int
    first_batch: int

    def __call__(self, decoder: DecodeDataset) -> Iterator[DecodedBatch]:
        worker, workers = self.num_workers
        stream = self.shuffled(worker, workers)
        for part in self.epoch.slices(*self.ranks)[worker::workers]:
            try:
                images = dict(islice(stream, part.rows))
            except UserError as error:
                yield failed(str(error))
                return
            assert len(images) == part.rows, "a worker has too few samples"
            if part.number >= self.first_batch:
                yield self.decode(decoder, part, images)

    def shuffled(self, worker: int, workers: int) -> Iterator[EncodedSample]:
        runs = self.epoch.runs(*self.ranks, worker, workers)
        samples = read_runs(self.remote, self.epoch.split, runs)
        key = (self.epoch.seed, BUFFER, self.epoch.number, self.ranks[0], worker)
        rng = random.Random(int(np.random.default_rng(key).integers(2**63)))
        shuffled: Iterator[EncodedSample] = shuffle(self.buffer, initial=self.buffer, rng=rng)(samples)
        return shuffled

    def decode(self, decoder: DecodeDataset, part: StreamSlice, images: dict[int, bytes]) -> DecodedBatch:
        split, samples = self.epoch.split, np.fromiter(images, dtype=np.int64)
        job = LocalBatch(split.name, self.epoch.number, samples, part.first, part.global_size)

        def read(sample: int) -> bytes:
            if sample not in images:
                raise InvalidImageError("not available")  # so a bad sample has no replacement here and is an error
            return images[sample]

        decoded = decoder.decode(job, read)
        return decoded._replace(error=decoded.error.replace(str(split.folder), self.remote.url))


def failed(problem: str) -> DecodedBatch:
    nothing = np.empty(0, dtype=np.int64)
    return DecodedBatch(nothing.astype(np.uint8), nothing, nothing, nothing, 0, 0, [], problem)


@dataclass(frozen=True)
class StreamLoader:
    """Streams one rank's training batches; `loader` decodes and augments the streamed images."""

    remote: Remote
    loader: TorchLoader
    buffer: int

    def batches(self, plan: Sequence[NDArray[Any]], epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Yield this rank's slices of an epoch's global batches; `plan` determines only the sizes of the batches.

        Starts at `first_batch`: the samples of earlier batches are read, but skipped. Raises `UserError`.
        """
        recipe = self.loader.recipe
        epoch_plan = StreamPlan(recipe.splits["train"], [len(samples) for samples in plan], recipe.seed, epoch)
        workers = max(recipe.workers, 1)
        ranks = (recipe.rank, recipe.ranks)
        order = [(first_batch + turn) % workers for turn in range(workers)]
        """Order in which the workers take turns, starting with the worker of the first batch."""
        tasks = [
            DecodeStream(self.remote, epoch_plan, ranks, (worker, workers), self.buffer, first_batch)
            for worker in order
        ]
        for decoded in self.loader.run(tasks):
            yield self.loader.finish(decoded, "train")
