"""Datasets of synthetic faces, for demos and tests: no download, and the true distributions are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adadf_dist.data.build.builder import BuildOptions, build_dataset
from adadf_dist.data.build.source import Provenance, SourceItem
from adadf_dist.data.build.writer import Sample
from adadf_dist.data.dataset import Dataset
from adadf_dist.data.jpeg import encode
from adadf_dist.data.manifest import SPLITS
from adadf_dist.data.synthetic.faces import EMOTIONS, render_sample
from adadf_dist.data.workers.task_pool import ProcessPool
from adadf_dist.errors import UserError

ID_STRIDE = 10**9
"""Number of face indices reserved for each split, so that adding training faces never changes a test face."""


@dataclass(frozen=True)
class SyntheticSource:
    """A `Source` whose samples are rendered instead of read from files."""

    counts: Mapping[str, int]
    """Number of faces per split."""
    size: int
    """Side of an image in pixels."""
    seed: int

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(EMOTIONS)

    @property
    def provenance(self) -> Provenance:
        return Provenance("synthetic", {"faces": dict(self.counts), "size": self.size})

    @property
    def image_bytes(self) -> int:
        return sum(self.counts.values()) * self.size**2

    def items(self) -> Sequence[SourceItem]:
        return [
            SourceItem(split, f"{split}-{number:07d}", SPLITS.index(split) * ID_STRIDE + number)
            for split, count in self.counts.items()
            for number in range(count)
        ]

    def describe_item(self, number: int) -> str:
        return f"drawn face {number}"

    def label(self, number: int) -> int:
        return render_sample(self.seed, number, self.size).label

    def fingerprint(self, number: int) -> bytes:
        return f"{self.seed} {number} {self.size}".encode()

    def load(self, number: int) -> Sample:
        face = render_sample(self.seed, number, self.size)
        return Sample(
            image=encode(face.image),
            label=face.label,
            votes=face.votes.tolist(),
            distribution=face.distribution.tolist(),
            source=self.describe_item(number),
            details={},
        )


def build_synthetic_dataset(
    out: Path, counts: Mapping[str, int], size: int = 64, seed: int = 0, workers: int = 1
) -> Dataset:
    """Render `counts[split]` faces of `size` pixels per split and write them as the dataset folder `out`.

    Equal counts, size and seed give equal bytes. Raises `UserError`, also if `out` exists.
    """
    options = BuildOptions(name="embedded-faces", seed=seed)
    return build_dataset(make_synthetic_source(counts, size, seed), out, options, ProcessPool(workers))


def make_synthetic_source(counts: Mapping[str, int], size: int, seed: int) -> SyntheticSource:
    """Return a source for the non-empty splits. Raises `UserError` for invalid arguments."""
    for split, count in counts.items():
        if not 0 <= count <= ID_STRIDE:
            raise UserError(f"{split}: the number of faces must be from 0 to {ID_STRIDE:,}, not {count}")
    if not 16 <= size <= 1024:
        raise UserError(f"size {size}: must be from 16 to 1,024 pixels")
    return SyntheticSource({split: counts[split] for split in SPLITS if counts.get(split)}, size, seed)
