"""Damaged dataset folders: each is one line that names the file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adadf_dist.data.dataset import Dataset, check_trainable, open_dataset
from adadf_dist.errors import UserError

# Every fault is one line


def edit_json(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "dataset.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_index(folder: Path, column: str, change: Callable[[list[Any]], object]) -> None:
    path = folder / "train.parquet"
    table = pq.read_table(path)
    cells = table[column].to_pylist()
    change(cells)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array(cells, table.schema.field(column).type)), path)


def put(key: str, value: object) -> Callable[[Any], None]:
    """Set table[key] = value; `key` may be a path with dots, in which numbers are list positions."""

    def change(table: Any) -> None:
        *path, last = [int(word) if word.isdigit() else word for word in key.split(".")]
        for word in path:
            table = table[word]
        table[last] = value

    return change


BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder gone": (shutil.rmtree, "no such dataset folder"),
    "no dataset.json": (lambda f: (f / "dataset.json").unlink(), "no dataset.json"),
    "newer": (lambda f: edit_json(f, put("format_version", 2)), "format version 2.*update adadf_dist"),
    "no version": (lambda f: edit_json(f, lambda table: table.pop("format_version")), "missing field format_version"),
    "damaged": (lambda f: os.truncate(f / "dataset.json", 300), "dataset.json: corrupt"),
    "no object": (lambda f: (f / "dataset.json").write_text("[]"), "not a JSON object"),
    "truncated tar": (lambda f: os.truncate(f / "train-000002.tar", 5000), "train-000002.tar: truncated: 5,000 bytes"),
    "longer tar": (lambda f: os.truncate(f / "train-000002.tar", 10**6), "train-000002.tar: changed"),
    "no tar": (lambda f: (f / "test-000001.tar").unlink(), "test-000001.tar: missing"),
    "no index": (lambda f: (f / "train.parquet").unlink(), "train.parquet: missing"),
    "damaged index": (lambda f: os.truncate(f / "train.parquet", 400), "train.parquet: corrupt"),
    "foreign index": (
        lambda f: pq.write_table(pa.table({"face": [1]}), f / "train.parquet"),
        "train.parquet: not an index",
    ),
    "index of another split": (
        lambda f: shutil.copy(f / "test.parquet", f / "train.parquet"),
        "train.parquet: 9 rows, but dataset.json lists 41",
    ),
    "outside the tar": (lambda f: edit_index(f, "offset", put("3", 10**9)), r"row 3 \(key face_.*outside its tar"),
    "beyond the tar": (lambda f: edit_index(f, "size", put("3", 10**9)), r"row 3 \(key face_.*outside its tar"),
    "negative offset": (lambda f: edit_index(f, "offset", put("3", -1)), "outside its tar"),
    "unknown shard": (lambda f: edit_index(f, "shard", put("4", 99)), "row 4 .*shard number"),
    "label too large": (lambda f: edit_index(f, "label", put("2", 3)), "row 2 .*label outside the 3 classes"),
    "label negative": (lambda f: edit_index(f, "label", put("2", -1)), "label outside the 3 classes"),
    "label empty": (lambda f: edit_index(f, "label", put("2", None)), "label has empty cells"),
    "labels miscounted": (
        lambda f: edit_index(f, "label", lambda cells: put("0", (cells[0] + 1) % 3)(cells)),
        "class counts differ from dataset.json",
    ),
    "votes too short": (lambda f: edit_index(f, "votes", put("0", [1.0])), "train.parquet: not an index"),
    "no samples": (lambda f: edit_json(f, put("splits.test.samples", 0)), "splits.test has no samples"),
    "samples miscounted": (lambda f: edit_json(f, put("splits.test.shards.0.samples", 3)), "counts that sum to 3"),
    "class twice": (lambda f: edit_json(f, put("classes", ["calm", "glad", "calm"])), "'calm' is listed twice"),
    "no classes": (lambda f: edit_json(f, put("classes", [])), "classes must be a list of names"),
    "unknown split": (lambda f: edit_json(f, put("splits.dev", {})), "'dev' is not one of"),
    "wrong type": (lambda f: edit_json(f, put("name", 5)), "name is '5', not of type str"),
    "path in file": (lambda f: edit_json(f, put("splits.test.index", "../x.parquet")), "not a plain file name"),
}


@pytest.mark.parametrize(("break_it", "line"), BREAKS.values(), ids=BREAKS)
def test_broken_dataset_is_one_line(copy: Path, break_it: Callable[[Path], object], line: str) -> None:
    open_dataset(copy).split("train")  # valid before
    break_it(copy)
    with pytest.raises(UserError, match=line) as error:
        open_dataset(copy).split("train")
    assert "\n" not in str(error.value)
    assert str(copy) in str(error.value)


def test_missing_split_error_lists_existing_splits(built: Dataset) -> None:
    with pytest.raises(UserError, match="no validation split; it has train, test"):
        built.split("validation")


def test_single_class_dataset_is_rejected(built: Dataset) -> None:
    split = built.split("train")
    check_trainable(split)
    with pytest.raises(UserError, match="split train contains only class glad"):
        check_trainable(split.subset(np.flatnonzero(split.labels == 1), "train"))
