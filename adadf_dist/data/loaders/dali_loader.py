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

from adadf_dist.data.augment.apply_torch import on_device
from adadf_dist.data.augment.policy import draw
from adadf_dist.data.batch import Batch
from adadf_dist.data.jpeg import BadImage
from adadf_dist.data.loaders.base import Job, Recipe, Replacements, decode_stored, replace
from adadf_dist.data.loaders.dali_backends import Place, place_of
from adadf_dist.data.loaders.jpeg_header import is_plain_jpeg
from adadf_dist.data.loaders.prefetch import Ahead
from adadf_dist.data.sampling import Samples
from adadf_dist.errors import UserError

CHUNK = 256
"""Faces decoded and augmented together, at most, unless a batch alone is larger."""
CHUNKS_AHEAD = 2
"""Chunks that DALI holds decoded or in work."""
DECODING = {"output_type": types.RGB, "adjust_orientation": False, "jpeg_fancy_upsampling": True}
"""As Pillow decodes: stored faces are upright, and chroma is interpolated."""


@dataclass
class Chunk:
    """Neighbouring jobs, decoded together."""

    jobs: Sequence[Job]
    samples: Samples
    """Of all jobs; substitutes stand in for what does not decode."""
    encoded: list[NDArray[np.uint8]]
    """Views of the mapped tars, which live as long as DALI may read them, or bitmaps of what Pillow decoded."""
    by_pillow: bool = False
    """All of them are bitmaps."""


class DaliLoader:
    """Batches of a dataset's splits for one rank."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.replaced = 0
        self._replacements = Replacements(recipe.max_bad_faces)
        self._place = place_of(recipe)
        self._decoder: Decoder | None = None
        self._running: Ahead[Batch] | None = None

    def batches(self, split: str, plan: Sequence[Samples], epoch: int = -1) -> Iterator[Batch]:
        self._stop()
        self._running = Ahead(self._make(self.recipe.jobs(split, plan, epoch)), self.recipe.prefetch)
        yield from map(self._place.hand_over, self._running)

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

    def _make(self, jobs: Sequence[Job]) -> Iterator[Batch]:
        """The jobs' batches. Runs in a thread."""
        chunks = (self._read(group) for group in group_jobs(jobs))
        try:
            with self._place.work():
                for chunk, taken in self._decode(chunks):
                    made = self._finish_chunk(chunk, taken)
                    self._place.settle()  # before DALI reuses what the images were copied from
                    yield from made
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"data.loader dali: out of memory on {self.recipe.device} with batch_size {self.recipe.batch_size}, "
                f"data.prefetch {self.recipe.prefetch} and data.image_size {self.recipe.preprocessing.image_size}; "
                "lower data.prefetch first, then batch_size"
            ) from None

    def _read(self, jobs: Sequence[Job]) -> Chunk:
        """The encoded faces of some jobs."""
        split = self.recipe.splits[jobs[0].split]
        samples = np.concatenate([job.samples for job in jobs])
        chunk = Chunk(jobs, samples, [np.frombuffer(split.read(sample), np.uint8) for sample in samples.tolist()])
        self._mend(chunk, [row for row, data in enumerate(chunk.encoded) if not is_plain_jpeg(data)])
        return chunk

    def _decode(self, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, Any]]:
        """Each chunk and its faces, as `Place.take` gives them.

        DALI tells of a face that does not decode when its chunk comes back, and is of no use after: the chunks in
        flight are given again, mended, to a new pipeline.
        """
        feed = iter(chunks)
        while True:
            if self._decoder is None:
                self._decoder = Decoder(self.recipe, self._place)
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
                if is_out_of_memory(error) or all(chunk.by_pillow for chunk in in_flight):
                    raise
            # out of the handler: an error raised in it would hold DALI's, whose traceback holds the pipeline
            for chunk in in_flight:
                self._mend(chunk, range(len(chunk.samples)))
                chunk.by_pillow = True
            feed = chain(in_flight, feed)

    def _mend(self, chunk: Chunk, rows: Iterable[int]) -> None:
        """Decode some faces with Pillow, the judge of both loaders, and replace those that it cannot decode.

        Raises `UserError` where they may not be replaced.
        """
        split = self.recipe.splits[chunk.jobs[0].split]
        epoch = chunk.jobs[0].epoch
        replaced = []
        for row in rows:
            sample = int(chunk.samples[row])
            try:
                image = decode_stored(split.read(sample))
            except BadImage as reason:
                replaced.append(replace(split, split.read, self.recipe.seed, epoch, (sample, reason)))
                chunk.samples[row] = replaced[-1].substitute
                image = decode_stored(split.read(replaced[-1].substitute))
            chunk.encoded[row] = as_bitmap(image)
        self.replaced += self._replacements.note(split, replaced)

    def _finish_chunk(self, chunk: Chunk, taken: Any) -> list[Batch]:
        """Augment and normalise a chunk, and cut it into its batches."""
        recipe = self.recipe
        size, epoch = recipe.preprocessing.image_size, chunk.jobs[0].epoch
        drawn = draw(recipe.augment, size, recipe.seed, epoch, chunk.samples)
        pixels = self._place.augment(taken, drawn)
        labels = on_device(recipe.splits[chunk.jobs[0].split].labels[chunk.samples], pixels)
        samples = on_device(chunk.samples, pixels)
        batches, start = [], 0
        for job in chunk.jobs:
            rows = slice(start, start + len(job.samples))
            batches.append(Batch(pixels[rows], labels[rows], samples[rows], job.first, job.global_size))
            start = rows.stop
        return batches


class Feed:
    """The chunks on their way into a pipeline, and those that are in it."""

    def __init__(self) -> None:
        self.to_come: Iterator[Chunk] = iter(())
        self.in_flight: deque[Chunk] = deque()

    def __call__(self) -> list[NDArray[np.uint8]]:
        """What DALI asks for. Raises `StopIteration` at the end."""
        chunk = next(self.to_come)
        self.in_flight.append(chunk)
        return chunk.encoded


class Decoder:
    """A DALI pipeline and the chunks that are in it.

    The pipeline knows the feed, and the feed knows the loader through the chunks to come: `run` and `close` break that
    cycle, so a pipeline ends when the last reference goes and never waits for the garbage collector.
    """

    def __init__(self, recipe: Recipe, place: Place) -> None:
        self.feed = Feed()
        self._place = place
        self._pipeline = decoding(
            self.feed,
            place.decoder,
            recipe.preprocessing.resized if place.resizes else 0,
            batch_size=max(CHUNK, math.ceil(recipe.batch_size / recipe.ranks)),
            num_threads=max(recipe.workers, 1),
            device_id=place.device_id,
            prefetch_queue_depth=CHUNKS_AHEAD,
        )

    def run(self, chunks: Iterator[Chunk]) -> Iterator[tuple[Chunk, Any]]:
        """Each chunk and its faces, as `Place.take` gives them. Raises `RuntimeError` for one that does not decode."""
        assert self._pipeline is not None
        self.feed.to_come = chunks
        while True:
            try:
                self._pipeline.schedule_run()
                (outputs,) = self._pipeline.share_outputs()
            except StopIteration:
                self._pipeline.reset()
                self.feed.to_come = iter(())
                return
            taken = self._place.take(outputs)
            self._pipeline.release_outputs()
            yield self.feed.in_flight.popleft(), taken

    def close(self) -> None:
        """End the pipeline here and now."""
        self._pipeline = None
        self.feed.to_come = iter(())
        self.feed.in_flight.clear()


@pipeline_def(enable_conditionals=True)  # type: ignore[untyped-decorator]
def decoding(source: Any, decoder: str, size: int) -> Any:
    """Decode, and resize what has another size; 0: what is decoded keeps its size."""
    encoded = fn.external_source(source=source, batch=True, no_copy=True, dtype=types.UINT8, ndim=1)
    images = fn.decoders.image(encoded, device=decoder, **DECODING)
    if size:
        shape = fn.peek_image_shape(encoded)
        if shape[0] != size or shape[1] != size:
            images = fn.resize(images, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=True)
    return images


def as_bitmap(image: Image.Image) -> NDArray[np.uint8]:
    stream = io.BytesIO()
    image.save(stream, "BMP")
    return np.frombuffer(stream.getvalue(), np.uint8)


def group_jobs(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Neighbouring jobs of `CHUNK` faces at most, or one that is larger."""
    group: list[Job] = []
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
