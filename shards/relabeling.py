"""Applies the decisions in a `relabel.csv` to the training split of a source: changes labels and drops samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adadf_dist.data.build.source import Provenance, Source, SourceItem
from adadf_dist.data.build.writer import Sample
from adadf_dist.data.relabel import read_decisions
from adadf_dist.errors import UserError


@dataclass(frozen=True)
class RelabeledSource:
    """A `Source` after relabeling, with changed labels and without the dropped samples.

    The remaining samples keep their keys, and therefore their stored order.
    """

    source: Source
    remaining: Sequence[SourceItem]
    """Samples that were not dropped, in the order of `source`."""
    labels: Mapping[int, int]
    """Maps the number of each relabeled sample to its new label."""
    provenance: Provenance

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    @property
    def image_bytes(self) -> int:
        return self.source.image_bytes

    def items(self) -> Sequence[SourceItem]:
        return self.remaining

    def describe_item(self, number: int) -> str:
        return self.source.describe_item(number)

    def label(self, number: int) -> int:
        return self.labels.get(number, self.source.label(number))

    def fingerprint(self, number: int) -> bytes:
        return f"{self.labels.get(number)} ".encode() + self.source.fingerprint(number)

    def load(self, number: int) -> Sample:
        """Load a sample with its new label; the old class of a relabeled sample is recorded in KEY.json."""
        sample = self.source.load(number)
        label = self.labels.get(number, sample.label)
        if label == sample.label:
            return sample
        details = {**sample.details, "relabeled_from": self.classes[sample.label]}
        return sample._replace(label=label, details=details)


def relabel_source(source: Source, path: Path) -> RelabeledSource:
    """Apply the decisions in the CSV file `path` to a source. Raises `UserError` if they do not match its samples."""
    decisions = read_decisions(path, source.classes, "--relabel")
    items = source.items()
    train = {item.key: item.number for item in items if item.split == "train"}
    decisions.check_keys(train, {item.key: item.split for item in items if item.split != "train"})
    decided = {key: number for key, number in train.items() if key in decisions.by_key}
    decisions.check_labels({key: source.label(number) for key, number in decided.items()}, source.classes)
    dropped = {train[key] for key, decision in decisions.by_key.items() if decision.kind == "drop"}
    labels = {train[key]: decision.label for key, decision in decisions.by_key.items() if decision.kind == "relabel"}
    remaining = [item for item in items if item.number not in dropped]
    if not any(item.split == "train" for item in remaining):
        raise UserError(f"{decisions.where}: drops every training sample; keep at least one")
    original = source.provenance
    provenance = replace(
        original,
        options={**original.options, "relabel": {"file": decisions.file, "sha256": decisions.sha256}},
        stats={**original.stats, "relabeled": len(labels), "dropped_by_decision": len(dropped)},
    )
    return RelabeledSource(source, remaining, labels, provenance)
