"""DALI loader: reads encoded images from memory-mapped tars in planned order, then decodes and augments them.

DALI decodes ahead in its own threads, a few hundred images at a time, because each batch has the same overhead
regardless of its size. A background thread augments the images (`dali_backends.py`), builds the batches and keeps
`prefetch` of them ready. On a GPU, all of this runs on a separate CUDA stream.
"""

from __future__ import annotations

import io
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def, types
from PIL import Image

from adadf_dist.data.augment.apply_torch import to_device_of
from adadf_dist.data.augment.policy import sample_augmentations
from adadf_dist.data.batch import Batch
from adadf_dist.data.jpeg import InvalidImageError
from adadf_dist.data.loaders.base import LoaderConfig, LocalBatch, ReplacementLog, decode_image, find_replacement
from adadf_dist.data.loaders.dali_backends import DecodeBackend, make_backend
from adadf_dist.data.loaders.jpeg_header import is_well_formed_jpeg
from adadf_dist.data.loaders.prefetch import BackgroundPrefetcher
from adadf_dist.data.sampling import Samples
from adadf_dist.errors import UserError

CHUNK = 256
"""Maximum number of images decoded and augmented together, unless a single batch is larger."""
PREFETCH_CHUNKS = 2
"""Number of chunks that DALI holds at a time, decoded or in progress."""
DECODING = {"output_type": types.RGB, "adjust_orientation": False, "jpeg_fancy_upsampling": True}
"""Decoder options that match Pillow: no EXIF rotation (stored images are upright), and interpolated chroma."""


@dataclass
class Chunk:
    """Consecutive local batches, decoded together."""

    jobs: Sequence[LocalBatch]
    samples: Samples
    """Sample indices of all jobs; samples that failed to decode are already replaced."""
    encoded: list[NDArray[np.uint8]]
    """Encoded images: views of the mapped tars, kept alive while DALI may read them, or BMPs of Pillow's output."""
    decoded_with_pillow: bool = False
    """Whether Pillow has decoded all images, so that all of `encoded` are BMPs."""


class DaliLoader:
    """Produces one rank's batches from the splits of a dataset, using DALI."""

    def __init__(self, recipe: LoaderConfig) -> None:
        self.recipe = recipe
        self.num_replaced = 0
        self._replacements = ReplacementLog(recipe.max_bad_samples)
        self._backend = make_backend(recipe)
        self._decoder: DaliDecoder | None = None
        self._running: BackgroundPrefetcher[Batch] | None = None

    def batches(self, split: str, plan: Sequence[Samples], epoch: int = -1) -> Iterator[Batch]:
        self._stop()
        self._running = BackgroundPrefetcher(self._produce(self.recipe.jobs(split, plan, epoch)), self.recipe.prefetch)
        yield from map(self._backend.record_stream, self._running)

    def close(self) -> None:
        self._stop()
        self._drop_decoder()
        self._backend.close()

    def _drop_decoder(self) -> None:
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None

    def _stop(self) -> None:
        """Stop the current pass, if any, even if it is unfinished."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def _produce(self, jobs: Sequence[LocalBatch]) -> Iterator[Batch]:
        """Yield a batch for each job. Runs in a background thread."""
        chunks = (self._read_chunk(group) for group in group_jobs(jobs))
        try:
            with self._backend.stream_context():
                for chunk, decoded in self._decode(chunks):
                    batches = self._finish_chunk(chunk, decoded)
                    self._backend.synchronize()  # before DALI reuses the source memory of the copies
                    yield from batches
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"data.loader dali: out of memory on {self.recipe.device} with batch_size "
                f"{self.recipe.batch_size}, data.prefetch_batches {self.recipe.prefetch} and data.image_size "
                f"{self.recipe.preprocessing.image_size}; lower data.prefetch_batches first, then batch_size"
            ) from None

    def _read_chunk(self, jobs: Sequence[LocalBatch]) -> Chunk:
        """Return a chunk with the encoded images of the jobs; unusual JPEGs are decoded with Pillow right away."""
        split = self.recipe.splits[jobs[0].split]
        samples = np.concatenate([job.samples for job in jobs])
        chunk = Chunk(jobs, samples, [np.frombuffer(split.read(sample), np.uint8) for sample in samples.tolist()])
        self._decode_with_pillow(
            chunk, [row for row, data in enumerate(chunk.encoded) if not is_well_formed_jpeg(data)]
        )
        return chunk

    def _decode(self, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, Any]]:
        """Yield each chunk with its decoded images, as `DecodeBackend.copy_out` returns them.

        DALI reports a decoding failure only when it returns the chunk, and its pipeline is unusable afterwards. Pillow
        then decodes all chunks in flight, and they are fed to a new pipeline.
        """
        feed = iter(chunks)
        while True:
            if self._decoder is None:
                self._decoder = DaliDecoder(self.recipe, self._backend)
            decoder = self._decoder
            try:
                yield from decoder.run(feed)
                return
            except (GeneratorExit, UserError):
                self._drop_decoder()  # with chunks in flight that no one will fetch
                raise
            except RuntimeError as error:
                in_flight = tuple(decoder.feed.in_flight)
                self._drop_decoder()
                if is_out_of_memory(error) or all(chunk.decoded_with_pillow for chunk in in_flight):
                    raise
            # outside the handler: an error raised there would keep DALI's traceback, and so the pipeline, alive
            for chunk in in_flight:
                self._decode_with_pillow(chunk, range(len(chunk.samples)))
                chunk.decoded_with_pillow = True
            feed = chain(in_flight, feed)

    def _decode_with_pillow(self, chunk: Chunk, rows: Iterable[int]) -> None:
        """Decode samples with Pillow, which decides for both loaders whether a sample is bad, and replace bad samples.

        Raises `UserError` if a bad sample cannot be replaced.
        """
        split = self.recipe.splits[chunk.jobs[0].split]
        epoch = chunk.jobs[0].epoch
        replaced = []
        for row in rows:
            sample = int(chunk.samples[row])
            try:
                image = decode_image(split.read(sample))
            except InvalidImageError as reason:
                replaced.append(find_replacement(split, split.read, self.recipe.seed, epoch, (sample, reason)))
                chunk.samples[row] = replaced[-1].substitute
                image = decode_image(split.read(replaced[-1].substitute))
            chunk.encoded[row] = to_bmp(image)
        self.num_replaced += self._replacements.record(split, replaced)

    def _finish_chunk(self, chunk: Chunk, decoded: Any) -> list[Batch]:
        """Augment and normalize a decoded chunk, and split it into batches."""
        recipe = self.recipe
        size, epoch = recipe.preprocessing.image_size, chunk.jobs[0].epoch
        augmentation = sample_augmentations(recipe.augment, size, recipe.seed, epoch, chunk.samples)
        pixels = self._backend.augment(decoded, augmentation)
        labels = to_device_of(recipe.splits[chunk.jobs[0].split].labels[chunk.samples], pixels)
        samples = to_device_of(chunk.samples, pixels)
        batches, start = [], 0
        for job in chunk.jobs:
            rows = slice(start, start + len(job.samples))
            batches.append(Batch(pixels[rows], labels[rows], samples[rows], job.first, job.global_size))
            start = rows.stop
        return batches


class ChunkFeed:
    """Feeds queued chunks to a DALI pipeline and keeps the chunks that are inside it."""

    def __init__(self) -> None:
        self.pending: Iterator[Chunk] = iter(())
        self.in_flight: deque[Chunk] = deque()

    def __call__(self) -> list[NDArray[np.uint8]]:
        """Return DALI's next input. Raises `StopIteration` at the end."""
        chunk = next(self.pending)
        self.in_flight.append(chunk)
        return chunk.encoded


class DaliDecoder:
    """A DALI pipeline that decodes chunks, and the chunks inside it.

    The pipeline references the feed, and the feed references the loader through the queued chunks. `run` and `close`
    break this cycle, so a pipeline is freed with its last reference, without waiting for the garbage collector.
    """

    def __init__(self, recipe: LoaderConfig, backend: DecodeBackend) -> None:
        self.feed = ChunkFeed()
        self._backend = backend
        self._pipeline = decode_pipeline(
            self.feed,
            backend.decoder,
            recipe.preprocessing.resized if backend.resizes else 0,
            batch_size=max(CHUNK, math.ceil(recipe.batch_size / recipe.ranks)),
            num_threads=max(recipe.workers, 1),
            device_id=backend.device_id,
            prefetch_queue_depth=PREFETCH_CHUNKS,
        )

    def run(self, chunks: Iterator[Chunk]) -> Iterator[tuple[Chunk, Any]]:
        """Yield each chunk with its decoded images. Raises `RuntimeError` if an image fails to decode."""
        assert self._pipeline is not None
        self.feed.pending = chunks
        while True:
            try:
                self._pipeline.schedule_run()
                (outputs,) = self._pipeline.share_outputs()
            except StopIteration:
                self._pipeline.reset()
                self.feed.pending = iter(())
                return
            decoded = self._backend.copy_out(outputs)
            self._pipeline.release_outputs()
            yield self.feed.in_flight.popleft(), decoded

    def close(self) -> None:
        """Destroy the pipeline immediately."""
        self._pipeline = None
        self.feed.pending = iter(())
        self.feed.in_flight.clear()


@pipeline_def(enable_conditionals=True)  # type: ignore[untyped-decorator]
def decode_pipeline(source: Any, decoder: str, size: int) -> Any:
    """Decode the images from `source` and resize them to a square of side `size`; 0 keeps their size."""
    encoded = fn.external_source(source=source, batch=True, no_copy=True, dtype=types.UINT8, ndim=1)
    images = fn.decoders.image(encoded, device=decoder, **DECODING)
    if size:
        shape = fn.peek_image_shape(encoded)
        if shape[0] != size or shape[1] != size:
            images = fn.resize(images, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=True)
    return images


def to_bmp(image: Image.Image) -> NDArray[np.uint8]:
    stream = io.BytesIO()
    image.save(stream, "BMP")
    return np.frombuffer(stream.getvalue(), np.uint8)


def group_jobs(jobs: Sequence[LocalBatch]) -> Iterator[list[LocalBatch]]:
    """Yield groups of consecutive jobs with at most `CHUNK` samples in total; a larger job forms its own group."""
    group: list[LocalBatch] = []
    for job in jobs:
        if group and sum(len(g.samples) for g in group) + len(job.samples) > CHUNK:
            yield group
            group = []
        group.append(job)
    if group:
        yield group


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether torch or DALI ran out of memory; DALI has no exception class for this."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        text in str(error).lower() for text in ("out of memory", "bad_alloc", "cudaerrormemoryallocation")
    )
