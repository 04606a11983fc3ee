"""What the doctor accepts as input, and the one line for what it does not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shards.doctor.__main__ import main
from shards.doctor.dataset_view import open_dataset_view
from tests.helpers import dataset_trees as trees


def error_line(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == 2
    output = capsys.readouterr()
    assert not output.out
    lines = [line for line in output.err.splitlines() if line.startswith("shards.doctor: error: ")]
    assert len(lines) == 1
    return lines[0]


def test_bad_input_is_one_line(clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such folder" in error_line(capsys, tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "line 1: no column" in error_line(capsys, tmp_path / "file")  # read as a CSV list
    (tmp_path / "odd" / "deep").mkdir(parents=True)
    (tmp_path / "odd" / "notes.txt").write_text("")
    line = error_line(capsys, tmp_path / "odd")
    assert "dataset.json" in line
    assert "fer2013.csv" in line
    assert "it contains deep/, notes.txt" in line
    (tmp_path / "empty").mkdir()
    assert "it contains nothing" in error_line(capsys, tmp_path / "empty")
    assert str(tmp_path / "file") in error_line(capsys, clean, "--html", tmp_path / "file" / "x.html")
    assert "is a folder" in error_line(capsys, clean, "--html", tmp_path)
    assert "is not a folder" in error_line(capsys, clean, "--json", tmp_path / "file" / "x.json")


def test_damaged_dataset_folder_is_one_line(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(faces, tmp_path / "faces")
    tar = next((tmp_path / "faces").glob("train-*.tar"))
    tar.write_bytes(tar.read_bytes()[:-1000])
    assert "truncated" in error_line(capsys, tmp_path / "faces")


def test_raw_trees_are_recognized(tmp_path: Path) -> None:
    """Each layout by itself, with all samples: none held out, none dropped."""
    trees.affectnet_2017(
        tmp_path / "2017", {f"1/{n}.jpg": n % 8 for n in range(16)}, {f"2/{n}.jpg": n for n in range(8)}
    )
    trees.affectnet_2021(tmp_path / "2021", list(range(8)), list(range(8)))
    trees.rafdb(tmp_path / "raf", {f"train_{n}.jpg": n for n in range(1, 8)} | {"test_1.jpg": 1})
    emotions = ("Angry", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")
    trees.class_folders(tmp_path / "sfew", {"Train": emotions, "Val": emotions})
    trees.class_folders(tmp_path / "own", {"train": ["a", "b"], "val": ["a", "b"]})
    expected = {
        "2017": ("affectnet", 24),
        "2021": ("affectnet", 16),
        "raf": ("rafdb", 8),
        "sfew": ("sfew", 14),
        "own": ("folder", 4),
    }
    for name, (source, samples) in expected.items():
        view = open_dataset_view(tmp_path / name)
        assert (view.source, len(view)) == (source, samples)
        assert "validation" not in view.splits or name == "own"
