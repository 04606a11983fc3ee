"""CSV lists in the dialects of spreadsheets, papers and pandas: read correctly, or one line that names the line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adadf_dist.files.csv_tables import parse_number, parse_whole
from tests.helpers import dataset_trees as trees
from tests.helpers.dataset_builds import facts, places, refused, run_build
from tests.helpers.dataset_trees import jpeg, write

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
def test_every_csv_dialect_is_read(content: str | bytes, tmp_path: Path) -> None:
    for number, (name, *_) in enumerate(ROWS):
        write(tmp_path / name, jpeg(number))
    path = write(tmp_path / "list.csv", content)
    dataset = run_build("csv", tmp_path / "out", "--csv", path, "--validation-fraction", 0)
    assert dataset.classes == ("glad", "sad")
    found = {source: (split, dataset.classes[label]) for source, (split, label) in places(dataset).items()}
    assert found == {name: (split, label) for name, label, split, *_ in ROWS}
    votes = {entry["source"]: entry["votes"] for split in dataset.splits for entry in facts(dataset, split).values()}
    assert votes == {"a.jpg": [3, 0.5], "b c.jpg": [0.25, 2], "d.jpg": [1, 0], "e.jpg": [0, 1]}


def test_separator_is_reported_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    "mixed separators": ("path,label\na.jpg;x\n", "line 2: 1 cells, but the header has 2 columns"),
    "unclosed quote": ('path,label\na.jpg,x\nb.jpg,"y\nc.jpg,y\n', "line 3: a quotation mark is not closed"),
    "huge cell": ('path,label\na.jpg,"' + "x" * 140_000, "line 2: a cell of more than 131,072 characters"),
    "nul": (b"path,label\na.jpg,x\0\n", "line 2: contains a NUL byte"),
    "latin-1": (b"path,label\na.jpg,fr\xf6hlich\n", "line 2: byte 0xf6 at column 9 is not UTF-8"),
    "empty label": ("path,label\na.jpg,x\nb.jpg, \n", "line 3: empty label"),
    "empty path": ("path,label\n,x\n", "line 2: path '' is outside the folder"),
    "nan votes": (
        "path,label,votes_x,votes_y\na.jpg,x,1,0\nb.jpg,y,nan,1\n",
        "line 3: votes must be nonnegative numbers",
    ),
    "infinite votes": ("path,label,votes_x,votes_y\na.jpg,x,inf,0\n", "line 2: votes must be nonnegative numbers"),
    "negative votes": ("path,label,votes_x,votes_y\na.jpg,x,-1,0\n", "line 2: votes must be nonnegative numbers"),
    "thousands or a share": (
        'path,label,votes_x,votes_y\na.jpg,x,"1,000",0\n',
        "line 2: votes must be nonnegative numbers",
    ),
    "votes beyond single precision": (
        "path,label,votes_x,votes_y\na.jpg,x,1e39,0\n",
        "line 2: votes must be at most 16,777,216, not '1e39'",
    ),
    "votes of a class twice": ("path,label,votes_x,votes_ x\na.jpg,x,1,0\n", "2 vote columns for class x"),
    "votes of no class": ("path,label,votes_x,Votes_\na.jpg,x,1,0\n", "column Votes_ names no class"),
    "bell in a label": (
        "path,label\na.jpg,x\nb.jpg,y\x07\n",
        "line 3: class name 'y\\x07' contains control",
    ),
    "line end in a label": ("path,label\na.jpg,x\nb.jpg,y\u2028z\n", "line 3: class name 'y\\u2028z' contains control"),
    "splits under another name": (
        "path,label,Usage\na.jpg,x,Training\nb.jpg,y,Training\nc.jpg,y,PublicTest\n",
        "column Usage contains PublicTest, Training; if these are the splits, rename the column to split",
    ),
    "web page": ("<!DOCTYPE html><html>sign in", "is a web page, not text; pass a text file"),
    "rich text": ("{\\rtf1 path,label", "is a rich text document, not text"),
    "Git LFS": ("version https://git-lfs.github.com/spec/v1\noid", "download the file with `git lfs pull`"),
    "from 1": ("path,label\na.jpg,1\nb.jpg,2\n", "labels are 1 to 2, so they seem to start at 1"),
    "the same path twice": ("path,label\na.jpg,x\n./a.jpg,y\n", "line 3: a.jpg is listed twice"),
    "drive of Windows": ("path,label\nC:\\x\\a.jpg,x\n", "line 2: path 'C:\\\\x\\\\a.jpg' is outside the folder"),
    "absolute elsewhere": ("path,label\n/nowhere/a.jpg,x\n", "line 2: path '/nowhere/a.jpg' is outside the folder"),
    "spreadsheet": (b"PK\x03\x04....", "is a zip archive, not text"),
    "one class": ("path,label\na.jpg,x\n", "contains only class x, but"),
}


@pytest.mark.parametrize(("content", "reason"), REFUSED.values(), ids=REFUSED)
def test_invalid_csv_is_rejected_before_writing(content: str | bytes, reason: str, tmp_path: Path) -> None:
    for number, name in enumerate(("a.jpg", "b.jpg", "c.jpg")):
        write(tmp_path / name, jpeg(number))
    path = write(tmp_path / "list.csv", content)
    assert reason in refused("csv", tmp_path, "--csv", path, "--validation-fraction", 0)


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
def test_numbers_and_names_are_labels(
    labels: list[str], options: tuple[Any, ...], classes: tuple[str, ...], of_last: str, tmp_path: Path
) -> None:
    for number in range(3):
        write(tmp_path / f"{number}.jpg", jpeg(number))
    lines = ["path,label", *(f"{number}.jpg,{label}" for number, label in enumerate(labels))]
    path = write(tmp_path / "list.csv", "\n".join(lines))
    dataset = run_build("csv", tmp_path / "out", "--csv", path, "--validation-fraction", 0, *options)
    assert dataset.classes == classes
    assert dataset.classes[places(dataset)["2.jpg"][1]] == of_last


def test_labels_counted_from_1_are_never_shifted(tmp_path: Path) -> None:
    """Two of three classes: read as numbers from 0 they would all be shifted by one."""
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


def test_ignored_columns_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        write(tmp_path / f"{number}.jpg", jpeg(number))
    path = write(tmp_path / "list.csv", "path,label,votes glad,,spilt\n0.jpg,glad,3,,train\n1.jpg,sad,0,,train\n")
    run_build("csv", tmp_path / "out", "--csv", path, "--validation-fraction", 0)
    assert f"note: {path}: ignored columns: votes glad, spilt\n" in capsys.readouterr().err


def test_absolute_paths_below_the_root_are_accepted(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / "pics" / f"{number}.jpg", jpeg(number))
    path = write(tmp_path / "list.csv", "".join(["path,label\n", *(f"{tmp_path}/pics/{n}.jpg,{n}\n" for n in (0, 1))]))
    dataset = run_build("csv", tmp_path / "out", "--csv", path, "--root", tmp_path / "pics", "--validation-fraction", 0)
    assert sorted(places(dataset)) == ["0.jpg", "1.jpg"]


@pytest.mark.parametrize("listed", ["IMG1.JPG", "img1.JPG"])
def test_names_with_another_letter_case_are_named(listed: str, tmp_path: Path) -> None:
    write(tmp_path / "img1.jpg", jpeg(1))
    write(tmp_path / "b.jpg", jpeg(2))
    path = write(tmp_path / "list.csv", f"path,label\n{listed},x\nb.jpg,y\n")
    words = ("--csv", path, "--validation-fraction", 0)
    assert f"{listed}: cannot be read: No such file or directory; the folder has img1.jpg" in refused(
        "csv", tmp_path, *words
    )


def test_wrong_root_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "list.csv", "path,label\na.jpg,x\nb.jpg,y\n")
    assert "none of the 2 images can be read (first: a.jpg" in refused("csv", tmp_path, "--csv", path)


@pytest.mark.parametrize(
    ("text", "number", "whole"),
    [("3", 3, 3), ("3.0", 3, 3), ("0,5", 0.5, None), ("1,000", None, None), ("²", None, None), ("1e1", 10, None)],
)
def test_numbers_are_parsed(text: str, number: float | None, whole: int | None) -> None:
    assert parse_whole(text) == whole
    assert np.isnan(parse_number(text)) if number is None else parse_number(text) == number
