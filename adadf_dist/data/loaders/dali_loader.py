"""The DALI loader: encoded bytes from the mapped tars in the plan's order, decoded and augmented on the device.

DALI decodes ahead in its own threads, a few hundred faces at a time: batches are small, and each costs the same
overhead as a large one. A thread of ours takes what is decoded, applies the stages (`augment/apply_torch.py`), finishes
the batches and keeps `prefetch` of them ready. On a GPU that all happens there, on a stream of its own.
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
"""Faces decoded and augmented together, at most, unless a batch alone is larger."""
PREFETCH_CHUNKS = 2
"""Chunks that DALI holds decoded or in work."""
DECODING = {"output_type": types.RGB, "adjust_orientation": False, "jpeg_fancy_upsampling": True}
"""As Pillow decodes: stored faces are upright, and chroma is interpolated."""


@dataclass
class Chunk:
    """Neighbouring jobs, decoded together."""

    jobs: Sequence[LocalBatch]
    samples: Samples
    """Of all jobs; substitutes stand in for what does not decode."""
    encoded: list[NDArray[np.uint8]]
    """Views of the mapped tars, which live as long as DALI may read them, or bitmaps of what Pillow decoded."""
    decoded_with_pillow: bool = False
    """All of them are bitmaps."""


class DaliLoader:
    """Batches of a dataset's splits for one rank."""

    def __init__(self, recipe: LoaderConfig) -> None:
        self.recipe = recipe
        self.num_replaced = 0
        self._replacements = ReplacementLog(recipe.max_bad_faces)
        self._place = make_backend(recipe)
        self._decoder: DaliDecoder | None = None
        self._running: BackgroundPrefetcher[Batch] | None = None

    def batches(self, split: str, plan: Sequence[Samples], epoch: int = -1) -> Iterator[Batch]:
        self._stop()
        self._running = BackgroundPrefetcher(self._produce(self.recipe.jobs(split, plan, epoch)), self.recipe.prefetch)
        yield from map(self._place.record_stream, self._running)

    def close(self) -> None:
        self._stop()
        self._drop_decoder()
        self._place.close()

    def _drop_decoder(self) -> None:
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None

    def _stop(self) -> None:
        """End a pass that was left early."""
        if self._running is not None:
            self._running.close()
            self._running = None

    def _produce(self, jobs: Sequence[LocalBatch]) -> Iterator[Batch]:
        """The jobs' batches. Runs in a thread."""
        chunks = (self._read_chunk(group) for group in group_jobs(jobs))
        try:
            with self._place.stream_context():
                for chunk, taken in self._decode(chunks):
                    made = self._finish_chunk(chunk, taken)
                    self._place.synchronize()  # before DALI reuses what the images were copied from
                    yield from made
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"data.loader dali: out of memory on {self.recipe.device} with batch_size {self.recipe.batch_size}, "
                f"data.prefetch {self.recipe.prefetch} and data.image_size {self.recipe.preprocessing.image_size}; "
                "lower data.prefetch first, then batch_size"
            ) from None

    def _read_chunk(self, jobs: Sequence[LocalBatch]) -> Chunk:
        """The encoded faces of some jobs."""
        split = self.recipe.splits[jobs[0].split]
        samples = np.concatenate([job.samples for job in jobs])
        chunk = Chunk(jobs, samples, [np.frombuffer(split.read(sample), np.uint8) for sample in samples.tolist()])
        self._decode_with_pillow(
            chunk, [row for row, data in enumerate(chunk.encoded) if not is_well_formed_jpeg(data)]
        )
        return chunk

    def _decode(self, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, Any]]:
        """Each chunk and its faces, as `Place.take` gives them.

        DALI tells of a face that does not decode when its chunk comes back, and is of no use after: the chunks in
        flight are given again, mended, to a new pipeline.
        """
        feed = iter(chunks)
        while True:
            if self._decoder is None:
                self._decoder = DaliDecoder(self.recipe, self._place)
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
            # out of the handler: an error raised in it would hold DALI's, whose traceback holds the pipeline
            for chunk in in_flight:
                self._decode_with_pillow(chunk, range(len(chunk.samples)))
                chunk.decoded_with_pillow = True
            feed = chain(in_flight, feed)

    def _decode_with_pillow(self, chunk: Chunk, rows: Iterable[int]) -> None:
        """Decode some faces with Pillow, the judge of both loaders, and replace those that it cannot decode.

        Raises `UserError` where they may not be replaced.
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

    def _finish_chunk(self, chunk: Chunk, taken: Any) -> list[Batch]:
        """Augment and normalise a chunk, and cut it into its batches."""
        recipe = self.recipe
        size, epoch = recipe.preprocessing.image_size, chunk.jobs[0].epoch
        drawn = sample_augmentations(recipe.augment, size, recipe.seed, epoch, chunk.samples)
        pixels = self._place.augment(taken, drawn)
        labels = to_device_of(recipe.splits[chunk.jobs[0].split].labels[chunk.samples], pixels)
        samples = to_device_of(chunk.samples, pixels)
        batches, start = [], 0
        for job in chunk.jobs:
            rows = slice(start, start + len(job.samples))
            batches.append(Batch(pixels[rows], labels[rows], samples[rows], job.first, job.global_size))
            start = rows.stop
        return batches


class ChunkFeed:
    """The chunks on their way into a pipeline, and those that are in it."""

    def __init__(self) -> None:
        self.pending: Iterator[Chunk] = iter(())
        self.in_flight: deque[Chunk] = deque()

    def __call__(self) -> list[NDArray[np.uint8]]:
        """What DALI asks for. Raises `StopIteration` at the end."""
        chunk = next(self.pending)
        self.in_flight.append(chunk)
        return chunk.encoded


class DaliDecoder:
    """A DALI pipeline and the chunks that are in it.

    The pipeline knows the feed, and the feed knows the loader through the chunks to come: `run` and `close` break that
    cycle, so a pipeline ends when the last reference goes and never waits for the garbage collector.
    """

    def __init__(self, recipe: LoaderConfig, place: DecodeBackend) -> None:
        self.feed = ChunkFeed()
        self._place = place
        self._pipeline = decode_pipeline(
            self.feed,
            place.decoder,
            recipe.preprocessing.resized if place.resizes else 0,
            batch_size=max(CHUNK, math.ceil(recipe.batch_size / recipe.ranks)),
            num_threads=max(recipe.workers, 1),
            device_id=place.device_id,
            prefetch_queue_depth=PREFETCH_CHUNKS,
        )

    def run(self, chunks: Iterator[Chunk]) -> Iterator[tuple[Chunk, Any]]:
        """Each chunk and its faces, as `Place.take` gives them. Raises `RuntimeError` for one that does not decode."""
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
            taken = self._place.copy_out(outputs)
            self._pipeline.release_outputs()
            yield self.feed.in_flight.popleft(), taken

    def close(self) -> None:
        """End the pipeline here and now."""
        self._pipeline = None
        self.feed.pending = iter(())
        self.feed.in_flight.clear()


@pipeline_def(enable_conditionals=True)  # type: ignore[untyped-decorator]
def decode_pipeline(source: Any, decoder: str, size: int) -> Any:
    """Decode, and resize what has another size; 0: what is decoded keeps its size."""
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
    """Neighbouring jobs of `CHUNK` faces at most, or one that is larger."""
    group: list[LocalBatch] = []
    for job in jobs:
        if group and sum(len(g.samples) for g in group) + len(job.samples) > CHUNK:
            yield group
            group = []
        group.append(job)
    if group:
        yield group


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or DALI, which has no class for it, ran out of memory."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        sign in str(error).lower() for sign in ("out of memory", "bad_alloc", "cudaerrormemoryallocation")
    )
