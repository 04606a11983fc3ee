"""Label noise, confusion matrices and decisions in every dialect of text tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from adadf_dist.data.dataset import open_dataset
from adadf_dist.data.label_noise import read_noise
from adadf_dist.data.relabel import read_decisions
from adadf_dist.errors import UserError
from tests.helpers import dataset_trees as trees
from tests.helpers.dataset_builds import findings, run_build
from tests.helpers.dataset_trees import jpeg, write

CLASSES = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger")


# Noise lists, matrices, decisions


NOISE_LISTS: dict[str, Callable[[list[tuple[str, str]]], str | bytes]] = {
    "blanks": lambda rows: "".join(f"{name} {label}\n" for name, label in rows),
    "byte order mark": lambda rows: b"\xef\xbb\xbf" + "".join(f"{n} {label}\r\n" for n, label in rows).encode(),
    "utf-16": lambda rows: "".join(f"{name}\t{label}\n" for name, label in rows).encode("utf-16"),
    "commas": lambda rows: "".join(f"{name},{label}\n" for name, label in rows),
    "semicolons and a header": lambda rows: "name;label\n" + "".join(f"{n} ; {label}\n" for n, label in rows),
    "old mac": lambda rows: "".join(f"{name} {label}\r" for name, label in rows),
    "paths of Windows": lambda rows: "".join(f"D:\\x\\train\\{name} {label}\n" for name, label in rows),
    "no extensions": lambda rows: "".join(f"{name[:-4]} {label}\n" for name, label in rows),
    "letter case": lambda rows: "".join(f"{name} {label.title()}\n" for name, label in rows),
    "numbers from 0": lambda rows: "".join(f"{name} {CLASSES.index(label)}.0\n" for name, label in rows),
    "numbers from 1": lambda rows: "".join(f"{name} {CLASSES.index(label) + 1}\n" for name, label in rows),
}


@pytest.mark.parametrize("form", NOISE_LISTS.values(), ids=NOISE_LISTS)
def test_every_label_of_a_noise_list_is_applied(
    form: Callable[[list[tuple[str, str]]], str | bytes], faces: Path, tmp_path: Path
) -> None:
    split = open_dataset(faces).split("train")
    given = [CLASSES[(int(label) + 3) % 7] for label in split.labels]
    rows = [(f"{key}.jpg", label) for key, label in zip(split.keys, given, strict=True)]
    noise = read_noise(split, write(tmp_path / "noise.txt", form(rows)), 0)
    assert [CLASSES[label] for label in noise.given] == given


def test_unknown_sample_is_named_with_its_line(faces: Path, tmp_path: Path) -> None:
    split = open_dataset(faces).split("train")
    path = write(tmp_path / "noise.txt", f"{split.keys[0]}.jpg sad\n\n{split.keys[1]}x.jpg sad\n")
    with pytest.raises(
        UserError, match=rf"label_noise_file: .*noise\.txt: line 3: no sample is named {split.keys[1]}x"
    ):
        read_noise(split, path, 0)
    path = write(tmp_path / "noise.txt", f"{split.keys[0]}.jpg sad\n{split.keys[0]} happy\n")
    with pytest.raises(UserError, match=rf"line 2: {split.keys[0]} has a different label in .*line 1"):
        read_noise(split, path, 0)


def test_ambiguous_file_names_need_their_folder(tmp_path: Path) -> None:
    for number, (name, file) in enumerate((("x", "1"), ("x", "2"), ("y", "1"), ("y", "3"))):
        write(tmp_path / "tree" / name / f"{file}.jpg", jpeg(number))
    dataset = run_build("folder", tmp_path / "out", "--root", tmp_path / "tree", "--validation-fraction", 0)
    split = dataset.split("train")
    with pytest.raises(UserError, match=r"line 1: 1\.jpg is ambiguous .*path relative to"):
        read_noise(split, write(tmp_path / "noise.txt", "1.jpg y\n"), 0)
    noise = read_noise(split, write(tmp_path / "noise.txt", "x/1.jpg y\n2.jpg y\n"), 0)
    changed = sorted(str(split.keys[number]) for number in noise.changed)
    assert changed == ["x-1", "x-2"]


def test_noise_list_may_name_samples_dropped_by_the_builder(tmp_path: Path) -> None:
    """A published list names every training image, including those that leak into test."""
    trees.rafdb(tmp_path / "raf", {**{f"train_{n}.jpg": n % 7 + 1 for n in range(14)}, "test_0.jpg": 1})
    leak = (tmp_path / "raf/Image/aligned/test_0_aligned.jpg").read_bytes()
    write(tmp_path / "raf/Image/aligned/train_3_aligned.jpg", leak)
    dataset = run_build("rafdb", tmp_path / "out", "--root", tmp_path / "raf", "--validation-fraction", 0)
    assert findings(dataset)["leaks_dropped"] == 1
    path = write(tmp_path / "noise.txt", "".join(f"train_{n}.jpg 7\n" for n in range(14)))
    noise = read_noise(dataset.split("train"), path, 0)
    assert noise.given.tolist() == [6] * 13
    assert "1 lines for samples outside the training split" in noise.describe()


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_every_matrix_dialect_is_read(separator: str, mark: bytes, faces: Path, tmp_path: Path) -> None:
    split = open_dataset(faces).split("train")
    share = "0,5" if separator == ";" else "0.5"
    rows = [separator.join(share if (i + 1) % 7 == j else "0" for j in range(7)) for i in range(7)]
    text = "\r\n".join([separator.join(name.title() for name in CLASSES), *rows])
    noise = read_noise(split, write(tmp_path / "m.csv", mark + text.encode()), 0)
    assert np.array_equal(noise.given, (split.labels + 1) % 7)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([",".join(CLASSES), *["nan,1,0,0,0,0,0"] * 7], "line 2 must contain 7 nonnegative numbers"),
        ([",".join(CLASSES), *["neutral,1,0,0,0,0,0,0"] * 7], "line 3: second row for class neutral"),
        (["," + ",".join(CLASSES), *["neutrl,1,0,0,0,0,0,0"] * 7], "line 2: 'neutrl' is not a class"),
        ([",".join((*CLASSES[:6], "neutral")), *["1,0,0,0,0,0,0"] * 7], "line 1 must be either the header of a matrix"),
    ],
)
def test_bad_matrices_are_rejected(lines: list[str], reason: str, faces: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_noise(open_dataset(faces).split("train"), write(tmp_path / "m.csv", "\n".join(lines)), 0)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "key,decision,label\nk1,relabel,happy\nk2,drop,\n",
        b"\xef\xbb\xbfKey;Decision;Label;\r\nk1 ;relabel; Happy;\r\nk2;drop;;\r\n",
        "decision\tkey\tlabel\tnote\nrelabel\tk1\thappy\tx\ndrop\tk2\t\t\n".encode("utf-16"),
        "key,decision,label\rk1,relabel,happy\rk2,drop,\r",
    ],
)
def test_every_decisions_dialect_is_read(content: str | bytes, tmp_path: Path) -> None:
    found = read_decisions(write(tmp_path / "r.csv", content), CLASSES, "data.relabel_file").by_key
    assert {key: (d.kind, d.label, d.line) for key, d in found.items()} == {
        "k1": ("relabel", 1, 2),
        "k2": ("drop", -1, 3),
    }
