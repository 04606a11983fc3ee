"""Evaluate a run in this process, on datasets that differ from its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from adadf_dist.data.build.builder import BuildOptions, build_dataset
from adadf_dist.data.build.writer import Sample
from adadf_dist.data.synthetic import dataset
from adadf_dist.data.synthetic.dataset import SyntheticSource
from adadf_dist.data.workers.task_pool import ProcessPool
from adadf_dist.evaluate.__main__ import main


@dataclass(frozen=True)
class Renamed(SyntheticSource):
    """The synthetic samples with other class names or order, and with more metadata."""

    names: tuple[str, ...] = ()
    """Of the drawn emotions, in their order."""
    order: tuple[int, ...] = ()
    """Label k of this dataset is drawn emotion `order[k]`."""
    voted: bool = True

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.names[emotion] for emotion in self.order)

    def load(self, number: int) -> Sample:
        drawn = super().load(number)
        assert drawn.votes is not None and drawn.distribution is not None
        details = {"glasses": number % 3 == 0, "weight": number / 7} | ({"side": "left"} if number % 2 else {})
        return drawn._replace(
            label=self.order.index(drawn.label),
            votes=[drawn.votes[emotion] for emotion in self.order] if self.voted else None,
            distribution=[drawn.distribution[emotion] for emotion in self.order] if self.voted else None,
            details=details,
        )


def build_renamed(out: Path, test: int, names: Sequence[str] = (), voted: bool = True) -> Path:
    """Build a dataset of test samples only, the first `test` of those in `faces`, with its classes in another order."""
    names = tuple(names) or tuple(dataset.EMOTIONS)
    order = (3, 0, 6, 1, 5, 2, 4)
    source = Renamed({"train": 2, "test": test}, 32, 0, names=names, order=order, voted=voted)
    build_dataset(source, out, BuildOptions(name="renamed", seed=0), ProcessPool(1))
    manifest = json.loads((out / "dataset.json").read_text())
    for shard in manifest["splits"].pop("train")["shards"]:
        (out / shard["file"]).unlink()
    (out / "dataset.json").write_text(json.dumps(manifest))
    return out


def evaluate(*words: object) -> dict[str, Any]:
    """The report of an evaluation in this process."""
    file = Path(str(words[0])).parent / "report.json"
    main([*map(str, words), "--json", str(file), "--overwrite"])
    report: dict[str, Any] = json.loads(file.read_text())
    return report


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of a failing evaluation."""
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words)])
    output = capsys.readouterr().err
    assert ended.value.code == 2
    assert output.count("\n") == 1, output
    assert output.startswith("adadf_dist.evaluate: error: ")
    return output
