"""Decodes and measures every image once, in worker processes.

The results take 350 bytes of memory per image, or 100 MB for 280,000 images.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from adadf_dist.data.jpeg import FORMATS, InvalidImageError, decode
from adadf_dist.data.workers.task_pool import map_tasks
from shards.doctor.dataset_view import UNKNOWN, Faces
from shards.doctor.fingerprint import LENGTH, fingerprint
from shards.duplicates import digest
from shards.progress import Progress

HUGE_FILE = 20 * 2**20
"""File size in bytes above which a file is reported as unusually large for a face image."""
COLOR_LEVELS = 8
"""Largest channel difference (of 255 levels) in an image that still counts as gray, to allow for JPEG artifacts."""

EMPTY = "empty file"

_TASK = 512  # faces


class FileAnomaly(NamedTuple):
    """An image that is unreadable, or whose file has an unexpected size or extension."""

    face: int
    """Sample number."""
    reason: str
    unreadable: bool


@dataclass(eq=False)
class ImageStats:
    """Measurements of N images; those of unreadable images are zero, with the label `UNKNOWN`."""

    label: NDArray[np.int16]
    size: NDArray[np.int32]
    """[N, 2], width and height of each image in pixels."""
    contrast: NDArray[np.float32]
    """[N], standard deviation of each image's gray levels."""
    colored: NDArray[np.bool_]
    content: NDArray[np.uint64]
    """[N, 2], digest of each image's size and pixels."""
    fingerprint: NDArray[np.float16]
    """[N, 143], fingerprint of each image, by which near-duplicates are found."""
    readable: NDArray[np.bool_]
    anomalies: list[FileAnomaly]

    @classmethod
    def blank(cls, count: int) -> ImageStats:
        return cls(
            label=np.full(count, UNKNOWN, np.int16),
            size=np.zeros((count, 2), np.int32),
            contrast=np.zeros(count, np.float32),
            colored=np.zeros(count, np.bool_),
            content=np.zeros((count, 2), np.uint64),
            fingerprint=np.zeros((count, LENGTH), np.float16),
            readable=np.zeros(count, np.bool_),
            anomalies=[],
        )

    def fill(self, first: int, part: ImageStats) -> None:
        """Copy the measurements in `part` into the rows starting at `first`."""
        for field in fields(self):
            if field.name == "anomalies":
                self.anomalies += part.anomalies
            else:
                getattr(self, field.name)[first : first + len(part.label)] = getattr(part, field.name)


class Task(NamedTuple):
    """A range of sample numbers, `first` to `last` (exclusive), for a worker process to measure."""

    first: int
    last: int


def compute_image_stats(faces: Faces, count: int, workers: int) -> ImageStats:
    """Measure all `count` images; unreadable images are listed in `anomalies`."""
    tasks = [Task(first, min(first + _TASK, count)) for first in range(0, count, _TASK)]
    whole = ImageStats.blank(count)
    with Progress("examining", count) as progress:
        for task, part in zip(tasks, map_tasks(compute_chunk, faces, tasks, workers, progress.update), strict=True):
            whole.fill(task.first, part)
    return whole


def compute_chunk(faces: Faces, task: Task, on_sample: Callable[[], object]) -> ImageStats:
    """Measure a range of images. Runs in a worker process."""
    image_stats = ImageStats.blank(task.last - task.first)
    for row, number in enumerate(range(task.first, task.last)):
        path = faces.file(number)
        reasons = [] if path is None else file_anomalies(path)
        try:
            data, label = faces.read(number)
            image = decode(data)
        except InvalidImageError as error:
            reason = EMPTY if EMPTY in reasons else "; ".join([*reasons, plain(error)])
            image_stats.anomalies.append(FileAnomaly(number, reason, unreadable=True))
        else:
            measure(image_stats, row, image)
            image_stats.label[row] = label
            image_stats.anomalies += [FileAnomaly(number, reason, unreadable=False) for reason in reasons]
        on_sample()
    return image_stats


def plain(error: InvalidImageError) -> str:
    """Return the error message without the object addresses that Pillow sometimes includes."""
    return re.sub(r" <_io\.\w+ object at 0x[0-9a-f]+>", "", str(error))


def measure(image_stats: ImageStats, row: int, image: Image.Image) -> None:
    gray = image.convert("L")
    image_stats.readable[row] = True
    image_stats.size[row] = image.size
    image_stats.contrast[row] = np.asarray(gray).std()
    image_stats.colored[row] = is_colored(image)
    image_stats.fingerprint[row] = fingerprint(gray)
    plain = gray if not image_stats.colored[row] else image.convert("RGB")
    image_stats.content[row] = np.frombuffer(digest(f"{plain.mode}{plain.size}".encode() + plain.tobytes()), np.uint64)


def is_colored(image: Image.Image) -> bool:
    if image.mode == "L":
        return False
    pixels = np.asarray(image.convert("RGB"), dtype=np.int16)
    return bool((pixels.max(axis=2) - pixels.min(axis=2)).max() > COLOR_LEVELS)


def file_anomalies(path: Path) -> Sequence[str]:
    """Return descriptions of what is unusual about a file's size or format, without decoding the image."""
    size = path.stat().st_size
    if not size:
        return [EMPTY]
    found = []
    if size > HUGE_FILE:
        found.append(f"{size / 2**20:,.0f} MiB, unusually large for a face")
    Image.init()
    text = Image.EXTENSION.get(path.suffix.lower())
    try:
        with Image.open(path, formats=FORMATS) as image:
            if text is not None and image.format != text:
                found.append(f"named {path.suffix}, but contains {image.format} data")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError, SyntaxError):
        pass  # the decoder reports the error
    return found
