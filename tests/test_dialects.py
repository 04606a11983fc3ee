"""Lists and tables as spreadsheets, papers and pandas write them: read right, or one line that names the line."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adadf_dist.data.dataset import open_dataset
from adadf_dist.data.label_noise import read_noise
from adadf_dist.data.relabel import read_decisions
from adadf_dist.errors import UserError
from adadf_dist.files.csv_tables import parse_number, parse_whole
from tests import trees
from tests.test_shards import facts, findings, places, run_build
from tests.trees import jpeg, write

CLASSES = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger")
HEADER = ("path", "label", "split", "votes_glad", "votes_sad", "note")
ROWS = [
    ("a.jpg", "glad", "train", "3", "0.5", 'he said "no, no"'),
    ("b c.jpg", "sad", "train", "0.25", "2", ""),
    ("d.jpg", "glad", "test", "1", "0", ""),
    ("e.jpg", "sad", "test", "", "1e0", "; | ,"),
]


def quoted(cells: Sequence[str], separator: str) -> str:
    return separator.join('"' + cell.replace('"', '""') + '"' if set(cell) & set(',;|\t"') else cell for cell in cells)


def table(separator: str = ",") -> str:
    return "\n".join(quoted(cells, separator) for cells in (HEADER, *ROWS)) + "\n"


def decimal_commas() -> str:
    rows = [[*cells[:3], *(cell.replace(".", ",") for cell in cells[3:5]), cells[5]] for cells in ROWS]
    return "\n".join(quoted(cells, ";") for cells in (HEADER, *rows))


DIALECTS: dict[str, str | bytes] = {
    "commas": table(),
    "semicolons": table(";"),
    "tabs": table("\t"),
    "bars": table("|"),
    "blanks after commas": "\n".join(line.replace(",", ", ") for line in table().splitlines()[:1])
    + "\n"
    + "\n".join(quoted(cells, ", ") for cells in ROWS),
    "byte order mark": b"\xef\xbb\xbf" + table().encode(),
    "utf-16": table(";").encode("utf-16"),
    "windows": table().replace("\n", "\r\n"),
    "old mac": table().replace("\n", "\r"),
    "decimal commas": decimal_commas(),
    "quoted decimal commas": decimal_commas().replace(";;", "\0").replace('"; | ,"', '"x"').replace("\0", ";;"),
    "a hint of Excel": "sep=;\n" + table(";"),
    "index of pandas": "\n".join(f"{n or ''},{line}" for n, line in enumerate(table().splitlines())),
    "empty columns": "\n".join(f"{line},," for line in table().splitlines()) + "\n,,,,,,,\n\n",
    "letter case of the header": table().replace("path,label,split", "Path, LABEL ,Split"),
    "letter case of votes": table().replace("votes_glad,votes_sad", "Votes_glad,VOTES_sad"),
    "backslashes": table().replace("a.jpg", ".\\a.jpg").replace("d.jpg", "./d.jpg"),
    "synonyms of splits": table().replace(",train,", ",Training,").replace(",test,", ",PublicTest,"),
}


@pytest.mark.parametrize("content", DIALECTS.values(), ids=DIALECTS)
def test_a_csv_in_every_dialect(content: str | bytes, tmp_path: Path) -> None:
    for number, (name, *_) in enumerate(ROWS):
        write(tmp_path / name, jpeg(number))
    path = write(tmp_path / "list.csv", content)
    dataset = run_build("csv", tmp_path / "out", "--csv", path, "--validation-fraction", 0)
    assert dataset.classes == ("glad", "sad")
    found = {source: (split, dataset.classes[label]) for source, (split, label) in places(dataset).items()}
    assert found == {name: (split, label) for name, label, split, *_ in ROWS}
    votes = {entry["source"]: entry["votes"] for split in dataset.splits for entry in facts(dataset, split).values()}
    assert votes == {"a.jpg": [3, 0.5], "b c.jpg": [0.25, 2], "d.jpg": [1, 0], "e.jpg": [0, 1]}


def test_the_separator_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, (name, *_) in enumerate(ROWS):
        write(tmp_path / name, jpeg(number))
    for separator, word in ((";", "semicolons"), ("\t", "tabs"), (",", "")):
        path = write(tmp_path / "list.csv", table(separator))
        run_build("csv", tmp_path / f"out{ord(separator)}", "--csv", path, "--validation-fraction", 0)
        lines = [line for line in capsys.readouterr().err.splitlines() if "separated" in line]
        assert lines == ([f"note: {path}: cells are separated by {word}"] if word else [])


REFUSED: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "line 1: no column path, label; the header has nothing"),
    "header only": ("path,label\n", "no lines after the header"),
    "no header": ("a.jpg,glad\n", "line 1: no column path, label; the header has a.jpg, glad"),
    "a column twice": ("path,label,Label\na.jpg,x,y\n", "line 1: column label appears twice"),
    "mixed separators": ("path,label\na.jpg;x\n", "line 2: 1 cells where the header has 2 columns"),
    "unclosed quote": ('path,label\na.jpg,x\nb.jpg,"y\nc.jpg,y\n', "line 3: a quotation mark is not closed"),
    "huge cell": ('path,label\na.jpg,"' + "x" * 140_000, "line 2: a cell of more than 131,072 characters"),
    "nul": (b"path,label\na.jpg,x\0\n", "line 2: contains a NUL byte"),
    "latin-1": (b"path,label\na.jpg,fr\xf6hlich\n", "line 2: byte 0xf6 at column 9 is not UTF-8"),
    "empty label": ("path,label\na.jpg,x\nb.jpg, \n", "line 3: empty label"),
    "empty path": ("path,label\n,x\n", "line 2: path '' is outside the folder"),
    "nan votes": ("path,label,votes_x,votes_y\na.jpg,x,1,0\nb.jpg,y,nan,1\n", "line 3: votes must be numbers of 0 or"),
    "infinite votes": ("path,label,votes_x,votes_y\na.jpg,x,inf,0\n", "line 2: votes must be numbers of 0 or more"),
    "negative votes": ("path,label,votes_x,votes_y\na.jpg,x,-1,0\n", "line 2: votes must be numbers of 0 or more"),
    "thousands or a share": ('path,label,votes_x,votes_y\na.jpg,x,"1,000",0\n', "line 2: votes must be numbers"),
    "votes beyond single precision": (
        "path,label,votes_x,votes_y\na.jpg,x,1e39,0\n",
        "line 2: votes must be at most 16,777,216, not '1e39'",
    ),
    "votes of a class twice": ("path,label,votes_x,votes_ x\na.jpg,x,1,0\n", "2 vote columns for class x"),
    "votes of no class": ("path,label,votes_x,Votes_\na.jpg,x,1,0\n", "column Votes_ names no class"),
    "bell in a label": (
        "path,label\na.jpg,x\nb.jpg,y\x07\n",
        "line 3: class name 'y\\x07' has control",
    ),
    "line end in a label": ("path,label\na.jpg,x\nb.jpg,y\u2028z\n", "line 3: class name 'y\\u2028z' has control"),
    "splits under another name": (
        "path,label,Usage\na.jpg,x,Training\nb.jpg,y,Training\nc.jpg,y,PublicTest\n",
        "column Usage contains PublicTest, Training; if these are the splits, name it split",
    ),
    "web page": ("<!DOCTYPE html><html>sign in", "is a web page, not text; pass a text file"),
    "rich text": ("{\\rtf1 path,label", "is a rich text document, not text"),
    "Git LFS": ("version https://git-lfs.github.com/spec/v1\noid", "download the file with `git lfs pull`"),
    "from 1": ("path,label\na.jpg,1\nb.jpg,2\n", "labels are 1 to 2, so they seem to start at 1"),
    "the same path twice": ("path,label\na.jpg,x\n./a.jpg,y\n", "line 3: a.jpg is listed twice"),
    "drive of Windows": ("path,label\nC:\\x\\a.jpg,x\n", "line 2: path 'C:\\\\x\\\\a.jpg' is outside the folder"),
    "absolute elsewhere": ("path,label\n/nowhere/a.jpg,x\n", "line 2: path '/nowhere/a.jpg' is outside the folder"),
    "spreadsheet": (b"PK\x03\x04....", "is a zip archive, not text"),
    "one class": ("path,label\na.jpg,x\n", "contains only class x;"),
}


@pytest.mark.parametrize(("content", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_a_csv_may_not_hold_is_refused_before_anything_is_written(
    content: str | bytes, reason: str, tmp_path: Path
) -> None:
    for number, name in enumerate(("a.jpg", "b.jpg", "c.jpg")):
        write(tmp_path / name, jpeg(number))
    path = write(tmp_path / "list.csv", content)
    assert reason in refused("csv", tmp_path, "--csv", path, "--validation-fraction", 0)


def refused(source: str, tmp_path: Path, *words: Any) -> str:
    with pytest.raises(UserError) as caught:
        run_build(source, tmp_path / "refused", *words)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "refused").exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("labels", "options", "classes", "of_last"),
    [
        (["0", "1", "2"], (), ("0", "1", "2"), "2"),
        (["0.0", "1.0", "2.0"], (), ("0", "1", "2"), "2"),
        (["1", "2", "3"], ("--first-label", 1), ("1", "2", "3"), "3"),
        (["1", "2", "3"], ("--first-label", 1, "--classes", "x,y,z"), ("x", "y", "z"), "z"),
        (["1", "2", "3"], ("--classes", "3,1,2"), ("3", "1", "2"), "3"),
        (["A", "b ", "C"], ("--classes", "c,B,a"), ("c", "B", "a"), "c"),
    ],
)
def test_numbers_and_names_as_labels(
    labels: list[str], options: tuple[Any, ...], classes: tuple[str, ...], of_last: str, tmp_path: Path
) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.jpg", jpeg(number))
    lines = ["path,label", *(f"{number}.jpg,{label}" for number, label in enumerate(labels))]
    path = write(tmp_path / "list.csv", "\n".join(lines))
    dataset = run_build("csv", tmp_path / "out", "--csv", path, "--validation-fraction", 0, *options)
    assert dataset.classes == classes
    assert dataset.classes[places(dataset)["2.jpg"][1]] == of_last


def test_labels_that_count_from_1_are_never_shifted(tmp_path: Path) -> None:
    """Two of three classes: as numbers from 0 they would all be of the next class."""
    for number in range(4):
        write(tmp_path / f"{number}.jpg", jpeg(number))
    path = write(tmp_path / "list.csv", "path,label\n0.jpg,1\n1.jpg,2\n2.jpg,1\n3.jpg,2\n")
    assert "pass --first-label 1" in refused("csv", tmp_path, "--csv", path, "--classes", "x,y,z")


@pytest.mark.parametrize(
    ("names", "warning"),
    [
        (("Angry", "angry", "sad"), "'Angry', 'angry' may be the same class"),
        (("happy", "happiness", "sad"), "'happiness', 'happy' may be the same class"),
        (("1", "2", "10"), "class names are numbers (1, 10, 2), sorted as text"),
        (("0.5", "1e3"), "class names are numbers (0.5, 1e3)"),
        (("NaN", "glad", "sad"), "class 'NaN' looks like a missing label"),
        (("glad ", "sad"), "class 'glad ' has leading or trailing spaces"),
        (("glad", "sad"), ""),
    ],
)
def test_doubtful_class_names_are_warned_about(
    names: tuple[str, ...], warning: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trees.class_folders(tmp_path / "faces", {"train": names * 2})
    run_build("folder", tmp_path / "out", "--root", tmp_path / "faces", "--validation-fraction", 0)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == bool(warning)
    assert warning in "".join(warnings)


def test_columns_that_are_not_read_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        write(tmp_path / f"{number}.jpg", jpeg(number))
    path = write(tmp_path / "list.csv", "path,label,votes glad,,spilt\n0.jpg,glad,3,,train\n1.jpg,sad,0,,train\n")
    run_build("csv", tmp_path / "out", "--csv", path, "--validation-fraction", 0)
    assert f"note: {path}: columns not read: votes glad, spilt\n" in capsys.readouterr().err


def test_absolute_paths_below_the_root(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / "pics" / f"{number}.jpg", jpeg(number))
    path = write(tmp_path / "list.csv", "".join(["path,label\n", *(f"{tmp_path}/pics/{n}.jpg,{n}\n" for n in (0, 1))]))
    dataset = run_build("csv", tmp_path / "out", "--csv", path, "--root", tmp_path / "pics", "--validation-fraction", 0)
    assert sorted(places(dataset)) == ["0.jpg", "1.jpg"]


@pytest.mark.parametrize("listed", ["IMG1.JPG", "img1.JPG"])
def test_names_that_differ_in_letter_case_are_named(listed: str, tmp_path: Path) -> None:
    write(tmp_path / "img1.jpg", jpeg(1))
    write(tmp_path / "b.jpg", jpeg(2))
    path = write(tmp_path / "list.csv", f"path,label\n{listed},x\nb.jpg,y\n")
    words = ("--csv", path, "--validation-fraction", 0)
    assert f"{listed}: cannot be read: No such file or directory; the folder has img1.jpg" in refused(
        "csv", tmp_path, *words
    )


def test_a_wrong_root_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "list.csv", "path,label\na.jpg,x\nb.jpg,y\n")
    assert "none of the 2 images can be read (first: a.jpg" in refused("csv", tmp_path, "--csv", path)


@pytest.mark.parametrize(
    ("text", "number", "whole"),
    [("3", 3, 3), ("3.0", 3, 3), ("0,5", 0.5, None), ("1,000", None, None), ("²", None, None), ("1e1", 10, None)],
)
def test_numbers(text: str, number: float | None, whole: int | None) -> None:
    assert parse_whole(text) == whole
    assert np.isnan(parse_number(text)) if number is None else parse_number(text) == number


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


def test_a_name_that_no_sample_has_is_named_with_its_line(faces: Path, tmp_path: Path) -> None:
    split = open_dataset(faces).split("train")
    path = write(tmp_path / "noise.txt", f"{split.keys[0]}.jpg sad\n\n{split.keys[1]}x.jpg sad\n")
    with pytest.raises(
        UserError, match=rf"label_noise_file: .*noise\.txt: line 3: no sample is called {split.keys[1]}x"
    ):
        read_noise(split, path, 0)
    path = write(tmp_path / "noise.txt", f"{split.keys[0]}.jpg sad\n{split.keys[0]} happy\n")
    with pytest.raises(UserError, match=rf"line 2: {split.keys[0]} has another label in .*line 1"):
        read_noise(split, path, 0)


def test_file_names_that_several_classes_have_need_their_folder(tmp_path: Path) -> None:
    for number, (name, file) in enumerate((("x", "1"), ("x", "2"), ("y", "1"), ("y", "3"))):
        write(tmp_path / "tree" / name / f"{file}.jpg", jpeg(number))
    dataset = run_build("folder", tmp_path / "out", "--root", tmp_path / "tree", "--validation-fraction", 0)
    split = dataset.split("train")
    with pytest.raises(UserError, match=r"line 1: 1\.jpg may be .*give the path below"):
        read_noise(split, write(tmp_path / "noise.txt", "1.jpg y\n"), 0)
    noise = read_noise(split, write(tmp_path / "noise.txt", "x/1.jpg y\n2.jpg y\n"), 0)
    changed = sorted(str(split.keys[number]) for number in noise.changed)
    assert changed == ["x-1", "x-2"]


def test_samples_that_the_builder_dropped_may_be_listed(tmp_path: Path) -> None:
    """A published list names every training image, also those that leak into test."""
    trees.rafdb(tmp_path / "raf", {**{f"train_{n}.jpg": n % 7 + 1 for n in range(14)}, "test_0.jpg": 1})
    leak = (tmp_path / "raf/Image/aligned/test_0_aligned.jpg").read_bytes()
    write(tmp_path / "raf/Image/aligned/train_3_aligned.jpg", leak)
    dataset = run_build("rafdb", tmp_path / "out", "--root", tmp_path / "raf", "--validation-fraction", 0)
    assert findings(dataset)["leaks_dropped"] == 1
    path = write(tmp_path / "noise.txt", "".join(f"train_{n}.jpg 7\n" for n in range(14)))
    noise = read_noise(dataset.split("train"), path, 0)
    assert noise.given.tolist() == [6] * 13
    assert "1 lines for samples that are not trained on" in noise.describe()


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_matrices_in_every_dialect(separator: str, mark: bytes, faces: Path, tmp_path: Path) -> None:
    split = open_dataset(faces).split("train")
    share = "0,5" if separator == ";" else "0.5"
    rows = [separator.join(share if (i + 1) % 7 == j else "0" for j in range(7)) for i in range(7)]
    text = "\r\n".join([separator.join(name.title() for name in CLASSES), *rows])
    noise = read_noise(split, write(tmp_path / "m.csv", mark + text.encode()), 0)
    assert np.array_equal(noise.given, (split.labels + 1) % 7)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([",".join(CLASSES), *["nan,1,0,0,0,0,0"] * 7], "line 2 must hold 7 numbers"),
        ([",".join(CLASSES), *["neutral,1,0,0,0,0,0,0"] * 7], "line 3: a second row for class neutral"),
        (["," + ",".join(CLASSES), *["neutrl,1,0,0,0,0,0,0"] * 7], "line 2: 'neutrl' is none of the classes"),
        ([",".join((*CLASSES[:6], "neutral")), *["1,0,0,0,0,0,0"] * 7], "line 1 must name the classes"),
    ],
)
def test_bad_matrices(lines: list[str], reason: str, faces: Path, tmp_path: Path) -> None:
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
def test_decisions_in_every_dialect(content: str | bytes, tmp_path: Path) -> None:
    found = read_decisions(write(tmp_path / "r.csv", content), CLASSES, "data.relabel").by_key
    assert {key: (d.kind, d.label, d.line) for key, d in found.items()} == {
        "k1": ("relabel", 1, 2),
        "k2": ("drop", -1, 3),
    }


# RAF-DB, AffectNet, FER2013

RAF_LISTS: dict[str, Callable[[int, str], str]] = {
    "plain": lambda n, name: f"{name} {n % 7 + 1}\n",
    "aligned names": lambda n, name: f"{name.replace('.jpg', '_aligned.jpg')} {n % 7 + 1}\n",
    "commas": lambda n, name: f"{name},{n % 7 + 1}\n",
    "floats and tabs": lambda n, name: f"{name}\t{n % 7 + 1}.0\n",
    "old mac": lambda n, name: f"{name} {n % 7 + 1}\r",
}
RAF_NAMES = [f"train_{n:05d}.jpg" for n in range(14)]


@pytest.mark.parametrize("form", RAF_LISTS.values(), ids=RAF_LISTS)
def test_lists_of_rafdb(form: Callable[[int, str], str], tmp_path: Path) -> None:
    root = tmp_path / "raf"
    trees.rafdb(root, {name: n % 7 + 1 for n, name in enumerate(RAF_NAMES)})
    write(root / "EmoLabel/list_patition_label.txt", "".join(form(n, name) for n, name in enumerate(RAF_NAMES)))
    votes = [
        f"{name.replace('.jpg', '_aligned.jpg')} {' '.join(['0.5'] * 6)} {n}\n" for n, name in enumerate(RAF_NAMES)
    ]
    write(root / "EmoLabel/distribution.txt", "".join(votes))
    dataset = run_build("rafdb", tmp_path / "out", "--root", root, "--validation-fraction", 0)
    assert findings(dataset)["faces_with_votes"] == len(RAF_NAMES)
    for entry in facts(dataset, "train").values():
        number = int(entry["source"].rpartition("train_")[2][:5])
        assert entry["label"] == number % 7
        assert entry["votes"] == [0.5] * 6 + [number]


def test_aligned_images_of_rafdb_under_their_plain_names(tmp_path: Path) -> None:
    root = tmp_path / "raf"
    trees.rafdb(root, {name: n % 7 + 1 for n, name in enumerate(RAF_NAMES)}, images="original")
    (root / "Image" / "original").rename(root / "Image" / "aligned")
    dataset = run_build("rafdb", tmp_path / "out", "--root", root, "--validation-fraction", 0)
    assert dataset.splits["train"].samples == len(RAF_NAMES)


@pytest.mark.parametrize(
    ("votes", "reason"),
    [
        ("train_00001.jpg 1 0 0 0 0 0 0\nstranger.jpg 1 0 0 0 0 0 0\n", "line 2: votes for stranger.jpg, which"),
        ("train_00001.jpg 1 0 0 0 0 0 nan\n", "line 1: shares must be numbers of 0 or more, not 'nan'"),
        ("train_00001.jpg 1 0 0 0 0 0 1e39\n", "line 1: shares must be at most 16,777,216, not '1e39'"),
        (
            "train_00001.jpg 1 0 0 0 0 0 0\ntrain_00001_aligned.jpg 1 0 0 0 0 0 0\n",
            "line 2: train_00001_aligned.jpg is listed twice",
        ),
        (
            "name a b c d e f g\ntrain_00001.jpg 1 0 0 0 0 0 0\n",
            "line 1: the columns a, b, c, d, e, f, g are not surpr",
        ),
    ],
)
def test_votes_of_rafdb_that_nobody_can_use(votes: str, reason: str, tmp_path: Path) -> None:
    trees.rafdb(tmp_path / "raf", {name: n % 7 + 1 for n, name in enumerate(RAF_NAMES)})
    write(tmp_path / "raf/EmoLabel/distribution.txt", votes)
    assert reason in refused("rafdb", tmp_path, "--root", tmp_path / "raf")


def test_votes_of_rafdb_with_a_header(tmp_path: Path) -> None:
    trees.rafdb(tmp_path / "raf", {name: n % 7 + 1 for n, name in enumerate(RAF_NAMES)})
    header = "name Neutral Anger Sadness Happy Disgust Fear Surprise\n"
    write(tmp_path / "raf/EmoLabel/distribution.txt", header + f"{RAF_NAMES[0]} 7 6 5 4 3 2 1\n")
    dataset = run_build("rafdb", tmp_path / "out", "--root", tmp_path / "raf", "--validation-fraction", 0)
    votes = [entry["votes"] for entry in facts(dataset, "train").values() if entry["votes"]]
    assert votes == [[1, 2, 3, 4, 5, 6, 7]]  # surprise, fear, disgust, happiness, sadness, anger, neutral


def test_affectnet_2021_without_landmarks(tmp_path: Path) -> None:
    root = tmp_path / "A"
    trees.affectnet_2021(root, list(range(8)) * 2, list(range(8)))
    for path in root.glob("*/annotations/*_lnd.npy"):
        path.unlink()
    dataset = run_build("affectnet", tmp_path / "out", "--root", root, "--validation-fraction", 0)
    assert findings(dataset)["images_without_landmarks"] == 24
    assert all("landmarks" not in entry and entry["valence"] == -0.25 for entry in facts(dataset, "train").values())
    assert "no image has landmarks" in refused("affectnet", tmp_path, "--root", root, "--align", "landmarks")


@pytest.mark.parametrize("numbers", [np.arange(135.0), np.array([]), np.full(136, np.nan)])
def test_affectnet_2021_with_one_bad_annotation(numbers: Any, tmp_path: Path) -> None:
    trees.affectnet_2021(tmp_path / "A", list(range(8)) * 2, list(range(8)))
    np.save(tmp_path / "A/train_set/annotations/3_lnd.npy", numbers)
    words = ("--root", tmp_path / "A", "--validation-fraction", 0)
    assert "1 of 24 images are invalid (first: train_set/images/3.jpg: annotation 3_lnd.npy" in refused(
        "affectnet", tmp_path, *words
    )
    dataset = run_build("affectnet", tmp_path / "out", *words, "--max-bad-images", 1)
    assert dataset.splits["train"].samples == 15


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text.encode("utf-16"), "training.csv: text is UTF-16"),
        (lambda text: text.replace("\n", "\r").encode(), "training.csv: has old Mac line endings"),
        (
            lambda text: text.replace("0/01.jpg", "0/\xff1.jpg").encode("latin-1"),
            "training.csv line 3: not a UTF-8 CSV file",
        ),
    ],
)
def test_lists_of_affectnet_2017_that_are_not_read(change: Callable[[str], bytes], reason: str, tmp_path: Path) -> None:
    trees.affectnet_2017(tmp_path / "A", {f"0/{n:02d}.jpg": n for n in range(8)}, {f"9/{n}.jpg": n for n in range(8)})
    path = tmp_path / "A" / "training.csv"
    path.write_bytes(change(path.read_text(encoding="utf-8")))
    assert reason in refused("affectnet", tmp_path, "--root", tmp_path / "A")


@pytest.mark.parametrize("form", ["plain", "byte order mark", "semicolons", "windows paths and floats"])
def test_lists_of_affectnet_2017(form: str, tmp_path: Path) -> None:
    trees.affectnet_2017(tmp_path / "A", {f"0/{n:02d}.jpg": n for n in range(8)}, {f"9/{n}.jpg": n for n in range(8)})
    for path in (tmp_path / "A" / "training.csv", tmp_path / "A" / "validation.csv"):
        text = path.read_text(encoding="utf-8")
        if form == "semicolons":
            rows = [line.split(",") for line in text.splitlines()]
            text = "\r\n".join(";".join(f'"{cell}"' if ";" in cell else cell for cell in row) for row in rows)
        if form.startswith("windows"):
            text = text.replace("0/", "0\\").replace("9/", "9\\").replace(",-0.25,", ".0,-0.25,")
        path.write_bytes(b"\xef\xbb\xbf" * (form == "byte order mark") + text.encode())
    dataset = run_build("affectnet", tmp_path / "out", "--root", tmp_path / "A", "--validation-fraction", 0)
    assert findings(dataset)["images_without_annotation"] == 0
    for entry in facts(dataset, "train").values():
        assert int(entry["source"].rpartition("/")[2][:2]) == entry["label"]
        assert (entry["box"], entry["landmarks"][1], entry["valence"]) == ([4, 2, 20, 18], [10.1, 5.1], -0.25)


def fer_csv(separator: str = ",", label: str = "{}") -> str:
    rows = [(label.format(n % 7), " ".join([str(n)] * 2304), "Training" if n < 14 else "PublicTest") for n in range(21)]
    return "\n".join(separator.join(row) for row in (("emotion", "pixels", "Usage"), *rows)) + "\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("fer2013", gzip.compress(fer_csv().encode())),
        ("fer2013.csv", fer_csv(";", "{}.0").encode()),
        ("fer2013.csv.gz", gzip.compress(fer_csv("\t").encode("utf-16"))),
        ("fer2013.txt", b"\xef\xbb\xbf" + fer_csv().replace("\n", "\r").encode()),
    ],
)
def test_fer2013_as_it_is_passed_on(name: str, content: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / name, content)
    words = ("--csv", path, "--labels", "fer", "--validation-fraction", 0.3)
    dataset = run_build("fer2013", tmp_path / "out", *words)
    assert sum(info.samples for info in dataset.splits.values()) == 21
    assert all(int(source.rpartition(" ")[2]) % 7 == label for source, (_, label) in places(dataset).items())


def packed(kind: str) -> bytes:
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as file:
            file.writestr("fer2013/fer2013.csv", fer_csv())
    else:
        info = tarfile.TarInfo("fer2013/fer2013.csv")
        info.size = len(fer_csv())
        with tarfile.open(fileobj=stream, mode=kind) as tar:  # type: ignore[call-overload]
            tar.addfile(info, io.BytesIO(fer_csv().encode()))
    return stream.getvalue()


@pytest.mark.parametrize(("name", "kind"), [("fer2013.tar.gz", "w:gz"), ("fer2013.zip", "zip"), ("fer2013.tar", "w")])
def test_archives_of_fer2013_are_called_so(name: str, kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / "download" / name, packed(kind))
    what = "a zip archive" if kind == "zip" else "a tar archive"
    assert f"{name}: is {what}, not text; unpack it" in refused("fer2013", tmp_path, "--csv", path, "--labels", "fer")
    by_root = refused("fer2013", tmp_path, "--root", path.parent, "--labels", "fer")
    assert f"{name} is an archive; unpack it" in by_root
    write(path.parent / "fer2013" / "fer2013.csv", fer_csv())
    deeper = refused("fer2013", tmp_path, "--root", path.parent, "--labels", "fer")
    assert deeper.endswith(f"pass --root {path.parent / 'fer2013'}")


def test_names_with_dots_and_forms_of_accents(tmp_path: Path) -> None:
    """Keys have no dots; macOS writes accents as two characters."""
    for number, name in enumerate(("fröhlich/a.1.jpg", "fröhlich/a.2.jpg", "sad/b.3.jpg")):
        write(tmp_path / "tree" / name, jpeg(number))
    dataset = run_build("folder", tmp_path / "out", "--root", tmp_path / "tree", "--validation-fraction", 0)
    decomposed = "fro\u0308hlich"
    path = write(tmp_path / "noise.txt", f"sad/b.3.jpg {decomposed}\na.1 sad\na.2.jpg sad\n")
    noise = read_noise(dataset.split("train"), path, 0)
    assert len(noise.changed) == 3
    split = tmp_path / "splits"
    for number, name in enumerate(("train/fröhlich/1.jpg", "train/sad/2.jpg", f"test/{decomposed}/3.jpg")):
        write(split / name, jpeg(number))
    assert "(train has fröhlich)" in refused("folder", tmp_path, "--root", split)
