"""Predict images in input order; threads prefetch and decode while the network computes a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, Queue
from threading import Thread
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from adadf_dist.data.loaders.base import DeviceTransform
from adadf_dist.export.exported_model import ExportedModel
from adadf_dist.predict.inputs import ImageInput
from adadf_dist.predict.preprocess import Aligner, PreparedImage, load_faces

MAX_BATCH_WAIT_S = 0.05
"""Maximum wait for the next image before an incomplete batch is predicted, because paths may be typed interactively."""

Prepared = Future[list[PreparedImage]]


class Row(NamedTuple):
    """Prediction for an image or for one of its faces."""

    face: PreparedImage
    probabilities: NDArray[np.float64] | None
    """[C], class probabilities; None if there is an error instead."""


class Predictor:
    """Predicts images with a model, decoding them in threads and preprocessing them as in evaluation."""

    def __init__(self, model: ExportedModel, batch_size: int, workers: int, aligner: Aligner | None = None) -> None:
        self.model = model
        self.batch_size = batch_size
        self.workers = workers
        self.aligner = aligner
        self._finish = DeviceTransform(model.preprocessing, model.device)

    def predict(self, images: Iterable[ImageInput]) -> Iterator[list[Row]]:
        """Yield the rows of each batch of images. An error raised by `images` is re-raised after the preceding rows."""
        ahead: Queue[Prepared | BaseException | None] = Queue(2 * self.batch_size + self.workers)
        with ThreadPoolExecutor(self.workers, "decode") as pool:
            Thread(target=self._read_ahead, args=(images, pool, ahead), daemon=True).start()
            ended = False
            while not ended:
                batch, end = collect_batch(ahead, self.batch_size)
                if batch:
                    yield self._predict_batch([face for prepared in batch for face in prepared.result()])
                if isinstance(end, BaseException):
                    raise end
                ended = end is None

    def _read_ahead(
        self, images: Iterable[ImageInput], pool: ThreadPoolExecutor, ahead: Queue[Prepared | BaseException | None]
    ) -> None:
        try:
            for image in images:
                ahead.put(pool.submit(load_faces, image, self.model.preprocessing.resized, self.aligner))
        except BaseException as error:
            ahead.put(error)
        else:
            ahead.put(None)

    def _predict_batch(self, faces: Sequence[PreparedImage]) -> list[Row]:
        """Return rows in the order of `faces`; faces with an error are not passed to the network."""
        good = [face.pixels for face in faces if face.pixels is not None]
        starts = range(0, len(good), self.batch_size)  # images may have several faces each
        probabilities = (
            row for start in starts for row in self.probabilities(np.stack(good[start : start + self.batch_size]))
        )
        return [Row(face, None if face.pixels is None else next(probabilities)) for face in faces]

    def probabilities(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return class probabilities [n, C] for RGB images [n, S, S, 3]."""
        device = self.model.device
        images = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)
        nothing_erased = torch.zeros(len(images), 4, dtype=torch.int64, device=device)
        logits = self.model.logits(self._finish(images, nothing_erased))
        return logits.double().softmax(dim=1).cpu().numpy()


MORE_TO_COME = "more"


def collect_batch(
    ahead: Queue[Prepared | BaseException | None], size: int
) -> tuple[list[Prepared], BaseException | str | None]:
    """Return up to `size` images, and either `MORE_TO_COME`, None at the end, or the error that ended the input."""
    batch: list[Prepared] = []
    while len(batch) < size:
        try:
            item = ahead.get(timeout=MAX_BATCH_WAIT_S if batch else None)
        except Empty:
            break
        if not isinstance(item, Future):
            return batch, item
        batch.append(item)
    return batch, MORE_TO_COME
