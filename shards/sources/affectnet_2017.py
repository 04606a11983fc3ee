"""AffectNet's release of 2017: two csv files and numbered folders of photographs."""

from __future__ import annotations

import csv
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from adadf_dist.data.jpeg import BadImage
from adadf_dist.errors import UserError
from shards.progress import watched
from shards.sources.photos import Listing, Picture, list_files, stay_inside

FILES = {"train": "training.csv", "test": "validation.csv"}
IMAGES = (
    "Manually_Annotated_Images",
    "Manually_Annotated/Manually_Annotated_Images",
    "Manually_Annotated",
    "images",
    ".",
)
COLUMNS = (
    "subDirectory_filePath",
    "face_x",
    "face_y",
    "face_width",
    "face_height",
    "facial_landmarks",
    "expression",
    "valence",
    "arousal",
)
EXPRESSIONS = 11
LOOK_AT = 100
"""Rows by which the folder of the pictures is found."""


class Row(NamedTuple):
    """A line of a csv that is annotated with an expression."""

    path: str
    expression: int
    start: int
    """Where the line begins, in bytes."""


@dataclass(frozen=True)
class Facts:
    """Annotations by picture, read from the csv when they are wanted: in memory they would come to 300 MB."""

    files: Sequence[Path]
    columns: Sequence[Sequence[str]]
    file_of: array[int]
    start_of: array[int]

    def __call__(self, number: int) -> Mapping[str, object]:
        file = self.file_of[number]
        with self.files[file].open("rb") as stream:
            stream.seek(self.start_of[number])
            cells = next(csv.reader([stream.readline().decode("utf-8")]))
        row = dict(zip(self.columns[file], cells, strict=True))
        try:
            left, top, width, height = (int(float(row[name])) for name in COLUMNS[1:5])
            points = [float(word) for word in row["facial_landmarks"].split(";")]
            valence, arousal = float(row["valence"]), float(row["arousal"])
        except ValueError as error:
            raise BadImage(f"{self.files[file].name}: {error}") from None
        return {
            "box": [left, top, left + width, top + height],
            "landmarks": [points[i : i + 2] for i in range(0, len(points) - 1, 2)],
            "valence": valence,
            "arousal": arousal,
        }


def list_release(root: Path, classes: Sequence[str]) -> Listing:
    """Every picture with one of the expressions. Raises `UserError`."""
    pictures: dict[str, Picture] = {}
    left_out: Counter[str] = Counter()
    files: list[Path] = []
    columns: list[list[str]] = []
    file_of, start_of = array("b"), array("q")
    named: set[str] = set()
    for split, name in FILES.items():
        path = root / name
        if not path.is_file():
            raise UserError(f"{path}: missing; AffectNet's release of 2017 has training.csv and validation.csv")
        header, rows = read_rows(path)
        base = find_images(root, path, rows)
        for row in rows:
            place = row.path if base == "." else f"{base}/{row.path}"
            named.add(place)
            if row.expression >= len(classes):
                left_out["contempt_left_out" if row.expression == 7 else "without_expression"] += 1
            elif place in pictures:
                same = pictures[place].label == row.expression
                left_out["repeated_rows" if same else "repeated_rows_of_another_label"] += 1
            else:
                pictures[place] = Picture(place, split, row.expression)
                file_of.append(len(files))
                start_of.append(row.start)
        files.append(path)
        columns.append(header)
    folders = {place.partition("/")[0] for place in pictures}
    extra = sum(path not in named for folder in sorted(folders) for path in list_files(root, folder))
    findings = {**left_out, "images_without_annotation": extra}
    facts = Facts(files, columns, file_of, start_of)
    return Listing("affectnet", tuple(classes), list(pictures.values()), "release of 2017", findings, facts)


def read_rows(path: Path) -> tuple[list[str], list[Row]]:
    """The header and every line. Raises `UserError`."""
    with path.open("rb") as stream:
        header = [name.strip() for name in next(csv.reader([stream.readline().decode("utf-8-sig", "replace")]), [])]
        for column in COLUMNS:
            if column not in header:
                raise UserError(f"{path} line 1: no column {column}; AffectNet's are {', '.join(COLUMNS)}")
        place = header.index("subDirectory_filePath"), header.index("expression")
        rows = list(watched(parse_rows(path, stream, len(header), place), f"reading {path.name}", unit="row"))
    if not rows:
        raise UserError(f"{path}: no line below the header; get the file again")
    return header, rows


def parse_rows(path: Path, lines: Iterator[bytes], width: int, place: tuple[int, int]) -> Iterator[Row]:
    start = lines.tell()  # type: ignore[attr-defined]
    for number, line in enumerate(iter(lines.readline, b""), start=2):  # type: ignore[attr-defined]
        where, begun = f"{path} line {number}", start
        start += len(line)
        if not line.strip():
            continue
        try:
            cells = next(csv.reader([line.decode("utf-8")]))
        except UnicodeDecodeError:
            raise UserError(f"{where}: is not text in UTF-8; get the file again") from None
        if len(cells) != width:
            raise UserError(f"{where}: {len(cells)} cells where the header has {width}")
        name, expression = cells[place[0]].strip(), cells[place[1]].strip()
        if not expression.isdigit() or int(expression) >= EXPRESSIONS:
            raise UserError(f"{where}: expression {expression!r}; AffectNet's are 0 to {EXPRESSIONS - 1}")
        yield Row(stay_inside(name, where), int(expression), begun)


def find_images(root: Path, file: Path, rows: Sequence[Row]) -> str:
    """The folder below the root that the csv's paths start from. Raises `UserError`."""
    for base in IMAGES:
        if any((root / base / row.path).is_file() for row in rows[:LOOK_AT]):
            return base
    looked = ", ".join(str(root / base) for base in IMAGES)
    raise UserError(f"{file}: looked for {rows[0].path} and the {LOOK_AT} after it below {looked}; found none of them")
