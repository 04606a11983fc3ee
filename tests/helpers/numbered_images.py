"""A source of numbered images, so that a test knows every sample."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from adadf_dist.data.build.builder import BuildOptions
from adadf_dist.data.build.source import Provenance, SourceItem
from adadf_dist.data.build.writer import Sample
from adadf_dist.data.jpeg import Jpeg

CLASSES = ("calm", "glad", "cross")
COUNTS = {"train": 41, "test": 9}
PROVENANCE = Provenance("pictures", {})


def jpeg(number: int) -> Jpeg:
    """A small image that is unique to its number."""
    width, height = 16 + number % 5, 16 + number % 3
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=80)
    return Jpeg(stream.getvalue(), width, height)


@dataclass(frozen=True)
class Pictures:
    """A source whose samples are known to the test: number n has label n % 3."""

    order: Sequence[int] = range(50)
    classes: tuple[str, ...] = CLASSES
    provenance: Provenance = PROVENANCE
    image_bytes: int = 50_000

    def items(self) -> list[SourceItem]:
        return [SourceItem("train" if n < COUNTS["train"] else "test", f"face_{n}", n) for n in self.order]

    def describe_item(self, number: int) -> str:
        return f"picture {number}"

    def label(self, number: int) -> int:
        return number % 3

    def fingerprint(self, number: int) -> bytes:
        return str(number).encode()

    def load(self, number: int) -> Sample:
        votes = None if number == 5 else [number % 4, number % 7, 1]
        return Sample(
            jpeg(number), number % 3, votes, [0.5, 0.25, 0.25], self.describe_item(number), {"room": number % 2}
        )


OPTIONS = BuildOptions(name="pictures", samples_per_shard=7)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
