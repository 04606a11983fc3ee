"""Faulty copies of published datasets: each is one line that names the file and the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adadf_dist.errors import UserError
from tests.helpers import dataset_trees as trees
from tests.helpers.dataset_builds import run_build
from tests.helpers.dataset_trees import jpeg, write

# User errors


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


BAD_2017: list[tuple[str, str, str, str]] = [
    ("training.csv", "expression,", "emotion,", "training.csv line 1: no column expression"),
    (
        "training.csv",
        ",0,-0.25,0.5",
        ",11,-0.25,0.5",
        "training.csv line 2: expression '11' must be a number from 0 to 10",
    ),
    ("training.csv", ",0,-0.25,0.5", ",x,-0.25,0.5", "training.csv line 2: expression 'x'"),
    ("training.csv", "0/00.jpg", "../00.jpg", "training.csv line 2: path '../00.jpg' is outside the folder"),
    ("training.csv", "0/00.jpg", "/etc/passwd", "training.csv line 2: path '/etc/passwd' is outside the folder"),
    ("training.csv", ",-0.25,0.5\n", ",-0.25\n", "training.csv line 2: 8 cells, but the header has 9 columns"),
]


@pytest.mark.parametrize(("file", "old", "new", "reason"), BAD_2017)
def test_affectnet_2017_bad_rows_are_one_line(
    file: str, old: str, new: str, reason: str, release_2017: Path, tmp_path: Path
) -> None:
    change(release_2017 / file, old, new)
    assert reason in build_error(tmp_path, "affectnet", "--root", release_2017)


def build_error(tmp_path: Path, *words: Any) -> str:
    """The one line with which a build ends."""
    with pytest.raises(UserError) as caught:
        run_build(words[0], tmp_path / "nothing", *words[1:])
    message = str(caught.value)
    assert "\n" not in message
    assert not (tmp_path / "nothing").exists()
    return message


def test_bad_roots_are_one_line(release_2017: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    write(empty / "holiday.jpg", jpeg(0))
    (release_2017 / "validation.csv").unlink()
    images = release_2017 / "Manually_Annotated_Images"
    cases = [
        (("affectnet", "--root", tmp_path / "nowhere"), "nowhere: no such folder"),
        (
            ("affectnet", "--root", empty),
            "expected training.csv or train_set/images and train_set/annotations or train",
        ),
        (("affectnet", "--root", empty), "found holiday.jpg"),
        (("affectnet", "--root", release_2017), "validation.csv: missing"),
        (
            ("rafdb", "--root", empty),
            "expected EmoLabel/list_patition_label.txt here or in basic/, found holiday.jpg",
        ),
        (("sfew", "--root", empty), "expected Train and Val"),
        (("csv", "--csv", empty / "list.csv"), "list.csv: no such file"),
    ]
    for words, reason in cases:
        assert reason in build_error(tmp_path, *words)
    images.rename(release_2017 / "elsewhere")
    assert "none of the first 100 images (0/00.jpg, ...) was found in" in build_error(
        tmp_path, "affectnet", "--root", release_2017
    )


BAD_RAF: list[tuple[str, str]] = [
    ("train_1.jpg 8\n", "line 1: label '8' must be a number from 1 to 7"),
    ("train_1.jpg 0\n", "line 1: label '0'"),
    ("train_1.jpg\n", "line 1: 'train_1.jpg' is not `name label`"),
    ("../train_1.jpg 3\n", "is outside the folder"),
    ("face_1.jpg 3\n", "starts with neither train_ nor test_"),
    ("train_1.jpg 3\ntrain_1.jpg 4\n", "line 2: train_1.jpg is listed twice"),
    ("", "empty file"),
]


@pytest.mark.parametrize(("text", "reason"), BAD_RAF)
def test_rafdb_bad_labels_are_one_line(text: str, reason: str, tmp_path: Path) -> None:
    trees.rafdb(tmp_path / "raf", {"train_1.jpg": 1})
    write(tmp_path / "raf" / "EmoLabel" / "list_patition_label.txt", text)
    assert reason in build_error(tmp_path, "rafdb", "--root", tmp_path / "raf")


def test_rafdb_bad_votes_are_one_line(tmp_path: Path) -> None:
    trees.rafdb(tmp_path / "raf", {f"train_{n}.jpg": n for n in range(1, 8)})
    write(tmp_path / "raf" / "EmoLabel" / "distribution.txt", "train_1.jpg 0.5 0.5\n")
    assert "distribution.txt: line 1: expected a name and 6 or 7 nonnegative fractions" in build_error(
        tmp_path, "rafdb", "--root", tmp_path / "raf"
    )


BAD_CSV: list[tuple[str, str]] = [
    ("file,label\na.jpg,x\n", "line 1: no column path; the header has file, label"),
    ("path,label\n", "no lines after the header"),
    ("path,label\na.jpg,x\na.jpg,x\n", "line 3: a.jpg is listed twice"),
    ("path,label\na.jpg,x,y\n", "line 2: 3 cells, but the header has 2 columns"),
    ("path,label\na.jpg\n", "line 2: 1 cells, but the header has 2 columns"),
    ("path,label,split\na.jpg,x,dev\n", "line 2: split 'dev'"),
    ("path,label,votes_x,votes_y\na.jpg,x,3,many\n", "line 2: votes must be nonnegative numbers"),
    ("path,label,votes_x,votes_y\na.jpg,z,3,1\n", "line 2: label 'z' is not one of x, y"),
    ("path,label\n../a.jpg,x\n", "line 2: path '../a.jpg' is outside the folder"),
]


@pytest.mark.parametrize(("text", "reason"), BAD_CSV)
def test_bad_lists_are_one_line(text: str, reason: str, tmp_path: Path) -> None:
    assert reason in build_error(tmp_path, "csv", "--csv", write(tmp_path / "list.csv", text))


def test_affectnet_2021_broken_annotation_is_one_line(tmp_path: Path) -> None:
    trees.affectnet_2021(tmp_path / "A", list(range(8)), list(range(8)))
    np.save(tmp_path / "A" / "train_set" / "annotations" / "3_exp.npy", "9")
    assert "3_exp.npy: expression 9" in build_error(tmp_path, "affectnet", "--root", tmp_path / "A")
    write(tmp_path / "A" / "train_set" / "annotations" / "3_exp.npy", b"junk")
    assert "3_exp.npy: annotation 3_exp.npy cannot be read" in build_error(
        tmp_path, "affectnet", "--root", tmp_path / "A"
    )


def test_class_without_an_image_is_an_error(tmp_path: Path) -> None:
    trees.affectnet_2021(tmp_path / "A", [0, 1, 2, 3, 4, 5, 7], [0])
    assert "class anger has no training images" in build_error(tmp_path, "affectnet", "--root", tmp_path / "A")
