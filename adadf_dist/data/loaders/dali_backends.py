"""CPU and GPU backends of the DALI loader, which contain only what differs between the two."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from adadf_dist.data.augment import apply_numba, apply_torch
from adadf_dist.data.augment.compiled import report_uncached
from adadf_dist.data.augment.policy import AugmentationBatch
from adadf_dist.data.batch import Batch
from adadf_dist.data.loaders.base import DeviceTransform, LoaderConfig

BLOCK = 16
"""Number of images that a CPU thread augments per task."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of `mallopt`, from glibc's malloc.h."""
MALLOC_LIMIT = 2**31 - 1


class DecodeBackend(Protocol):
    """Interface of the backends, which decode and augment images on one type of device."""

    decoder: Literal["cpu", "mixed"]
    """Device of DALI's image decoder; `mixed` starts on the CPU and finishes on the GPU."""
    resizes: bool
    """Whether DALI also resizes the images; otherwise, `augment` does."""
    device_id: int | None
    """GPU index for DALI; None for the CPU."""

    def copy_out(self, outputs: Any) -> Any:
        """Copy decoded images out of DALI's memory."""

    def augment(self, decoded: Any, augmentation: AugmentationBatch) -> Tensor:
        """Augment and normalize the output of `copy_out`, which may be overwritten, and return the network input."""

    def stream_context(self) -> AbstractContextManager[object]:
        """Return a context manager in which the loader's thread does all its work."""

    def synchronize(self) -> None:
        """Wait until all queued work is done."""

    def record_stream(self, batch: Batch) -> Batch:
        """Make a batch safe to use on the caller's CUDA stream, and return it."""

    def close(self) -> None: ...


def make_backend(recipe: LoaderConfig) -> DecodeBackend:
    return GpuBackend(recipe) if recipe.device.type == "cuda" else CpuBackend(recipe)


class CpuBackend:
    """Resizes images like torchvision and augments them with numba, in blocks that threads process in parallel."""

    decoder: Literal["cpu", "mixed"] = "cpu"
    resizes = False
    device_id: int | None = None

    def __init__(self, recipe: LoaderConfig) -> None:
        tune_malloc()
        report_uncached()
        self._size = recipe.preprocessing.resized
        self._finish = DeviceTransform(recipe.preprocessing, recipe.device)
        self._ten_crop = recipe.preprocessing.ten_crop > 0
        every_value = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
        self._normalized = self._finish.normalize(every_value).view(3, 256).numpy()
        self._workers = ThreadPoolExecutor(max(recipe.workers, 1), "augment")

    def copy_out(self, outputs: Any) -> list[NDArray[np.uint8]]:
        return [np.array(output) for output in outputs]

    def augment(self, decoded: list[NDArray[np.uint8]], augmentation: AugmentationBatch) -> Tensor:
        if self._ten_crop:
            return self._augment_crops(decoded, augmentation)
        pixels = torch.empty(len(decoded), 3, self._size, self._size)

        def work(start: int) -> None:
            rows = slice(start, start + BLOCK)
            images, part = self._resize(decoded[rows]), augmentation.rows(rows)
            apply_numba.apply_stages(images, part)
            apply_numba.normalize_and_erase(images, self._normalized, part.boxes, pixels[rows].numpy())

        list(self._workers.map(work, range(0, len(decoded), BLOCK)))
        return pixels

    def _augment_crops(self, decoded: list[NDArray[np.uint8]], augmentation: AugmentationBatch) -> Tensor:
        images = self._resize(decoded)
        apply_numba.apply_stages(images, augmentation)
        return self._finish(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(augmentation.boxes))

    def _resize(self, decoded: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Resize images to [n, S, S, 3] in Pillow's 8-bit arithmetic: faster than DALI, and closer to the reference."""
        size = (self._size, self._size)
        images = np.empty((len(decoded), *size, 3), dtype=np.uint8)
        for shape in {image.shape for image in decoded}:
            rows = [row for row, image in enumerate(decoded) if image.shape == shape]
            stored = np.stack([decoded[row] for row in rows])
            if shape[:2] != size:
                pixels = torch.from_numpy(stored).permute(0, 3, 1, 2)
                resized = F.interpolate(pixels, size=size, mode="bilinear", antialias=True)
                stored = resized.permute(0, 2, 3, 1).numpy()
            images[rows] = stored
        return images

    def stream_context(self) -> AbstractContextManager[object]:
        return nullcontext()

    def synchronize(self) -> None:
        pass

    def record_stream(self, batch: Batch) -> Batch:
        return batch

    def close(self) -> None:
        self._workers.shutdown()


class GpuBackend:
    """Decodes and augments images on its own CUDA stream, concurrently with the training step."""

    decoder: Literal["cpu", "mixed"] = "mixed"
    resizes = True

    def __init__(self, recipe: LoaderConfig) -> None:
        self._device = recipe.device
        self.device_id: int | None = torch.cuda.current_device() if recipe.device.index is None else recipe.device.index
        self._finish = DeviceTransform(recipe.preprocessing, recipe.device)
        self._stream = torch.cuda.Stream(recipe.device)  # type: ignore[no-untyped-call]

    def copy_out(self, outputs: Any) -> Tensor:
        return from_dlpack(outputs.as_tensor()).permute(0, 3, 1, 2).contiguous()

    def augment(self, decoded: Tensor, augmentation: AugmentationBatch) -> Tensor:
        images = apply_torch.apply_stages(decoded, augmentation)
        return self._finish(images, apply_torch.to_device_of(augmentation.boxes, images))

    def stream_context(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream)

    def synchronize(self) -> None:
        self._stream.synchronize()

    def record_stream(self, batch: Batch) -> Batch:
        stream = torch.cuda.current_stream(self._device)
        for tensor in (batch.images, batch.labels, batch.sample_ids):
            tensor.record_stream(stream)  # created on another stream: not to be reused before this stream is done
        return batch

    def close(self) -> None:
        pass


def tune_malloc() -> None:
    """Make the C library keep freed memory for reuse.

    By default, it returns large blocks to the system at once, and the page faults for each intermediate result then
    take more time than the arithmetic.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # not glibc: another allocator
        return
    mallopt(M_MMAP_THRESHOLD, MALLOC_LIMIT)
    mallopt(M_TRIM_THRESHOLD, MALLOC_LIMIT)
