"""Interface between the builder and a data source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from adadf_dist.data.build.writer import Sample


class SourceItem(NamedTuple):
    """A sample whose image has not been read yet."""

    split: str
    key: str
    """Name that is unique in the dataset; consists of letters, digits, `-` and `_`."""
    number: int
    """Index of the sample in the source."""


class CsvTable(NamedTuple):
    """A human-readable table, written into the dataset folder as CSV."""

    header: tuple[str, ...]
    lines: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Provenance:
    """Origin of the dataset for `dataset.json`. Contains no local path, so that a rebuild elsewhere is identical."""

    source: str
    options: Mapping[str, object]
    stats: Mapping[str, object] = field(default_factory=dict)
    """Counts of dropped, duplicate or ambiguous samples."""
    tables: Mapping[str, CsvTable] = field(default_factory=dict)
    """File name -> table of individual findings, such as duplicates."""


class Source(Protocol):
    """Interface of a source of samples. It is pickled for every worker process."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def provenance(self) -> Provenance: ...

    @property
    def image_bytes(self) -> int:
        """Approximate total size of the encoded images, used to check disk space."""

    def items(self) -> Sequence[SourceItem]:
        """Return every sample, in any order."""

    def describe_item(self, number: int) -> str:
        """Describe where sample `number` is in the source, for messages."""

    def label(self, number: int) -> int:
        """Return the class of sample `number` without reading its image."""

    def fingerprint(self, number: int) -> bytes:
        """Return a digest of everything that `load(number)` reads: image file, label, votes and annotations.

        A resumed build keeps a stored sample only while its fingerprint is unchanged.
        """

    def load(self, number: int) -> Sample:
        """Read, check and encode sample `number`. Raises `InvalidImageError` if it is invalid or cannot be read."""
