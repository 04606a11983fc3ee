"""What the builder asks of whoever knows where faces come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from adadf_dist.data.build.shard_task import SourceItem
from adadf_dist.data.build.writer import Sample


class CsvTable(NamedTuple):
    """A list for people, written into the dataset folder as csv."""

    header: tuple[str, ...]
    lines: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Provenance:
    """What `dataset.json` says of how the dataset came to be. No path of this machine: a rebuild elsewhere is equal."""

    source: str
    options: Mapping[str, object]
    findings: Mapping[str, object] = field(default_factory=dict)
    """What was dropped, doubled or in doubt, counted."""
    tables: Mapping[str, CsvTable] = field(default_factory=dict)
    """File name -> the findings one by one."""


class Source(Protocol):
    """Where faces come from. Pickled into every worker process."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def provenance(self) -> Provenance: ...

    @property
    def image_bytes(self) -> int:
        """About how many bytes the encoded images come to: room on the disk is checked by it."""

    def items(self) -> Sequence[SourceItem]:
        """Every face, in any order."""

    def describe_item(self, number: int) -> str:
        """Where face `number` is in the source, for people."""

    def label(self, number: int) -> int:
        """The class of face `number`, known without its image."""

    def fingerprint(self, number: int) -> bytes:
        """Digest of everything that `load(number)` reads: image file, label, votes and annotations.

        An interrupted build keeps a stored sample only while its fingerprint is unchanged.
        """

    def load(self, number: int) -> Sample:
        """Read, check and encode face `number`. Raises `InvalidImageError`, also when its file cannot be read."""
