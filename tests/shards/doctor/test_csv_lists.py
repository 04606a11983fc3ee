"""The doctor reads a CSV list exactly like `shards.build csv`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shards.build import build, parse_arguments
from shards.doctor.__main__ import main
from tests.helpers.dataset_trees import jpeg

OPTIONS = ("--validation-fraction", "0", "--classes", "cross,glad", "--max-side", "16")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A list whose images are in another folder; one image is in train and in test."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "lists").mkdir()
    lines = ["label,split,path"]
    for number in range(24):
        (tmp_path / "pictures" / f"{number}.jpg").write_bytes(jpeg(3 if number == 20 else number))
        lines.append(f"{('cross', 'glad')[number % 2]},{'test' if number > 17 else 'train'},{number}.jpg")
    (tmp_path / "lists" / "faces.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "lists" / "faces.csv"


def examine(table: Path, *options: str) -> dict[str, object]:
    out = table.parent / "doctor.json"
    with pytest.raises(SystemExit):
        main([str(table), "--num-workers", "1", "--json", str(out), *options])
    found: dict[str, object] = json.loads(out.read_text())
    return found


def test_splits_and_classes_equal_the_build(table: Path, tmp_path: Path) -> None:
    root = ("--root", str(tmp_path / "pictures"))
    words = ["csv", "--csv", str(table), "--out", str(tmp_path / "out"), "--num-workers", "1", "--keep-leaks"]
    built = build(parse_arguments([*words, *root, *OPTIONS]))
    found = examine(table, *root, *OPTIONS)
    assert (found["source"], found["path"]) == ("csv", str(table))
    assert found["classes"] == list(built.classes) == ["cross", "glad"]
    assert found["splits"] == {
        name: {"faces": info.samples, "class_counts": list(info.class_counts)} for name, info in built.splits.items()
    }
    leaks = [verdict for verdict in found["findings"] if verdict["check"] == "leaks"]  # type: ignore[attr-defined]
    names = {face["name"] for verdict in leaks for group in verdict["groups"] for face in group["faces"]}
    assert names == {"3.jpg", "20.jpg"}


@pytest.mark.parametrize(("row", "reason"), [("happy,train,1.jpg", "happy"), ("glad,dev,1.jpg", "dev")])
def test_errors_equal_the_build(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str, reason: str
) -> None:
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:2], row, *lines[3:]]) + "\n")
    options = ("--root", str(tmp_path / "pictures"), "--classes", "cross,glad")
    with pytest.raises(SystemExit) as stop:
        main([str(table), *options])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"{table}: line 3" in line
    assert reason in line
