"""Reads AffectNet's 2017 release: two CSV files and numbered folders of photos."""

from __future__ import annotations

import csv
import io
import math
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from adadf_dist.data.build.folder_tree import Skipped
from adadf_dist.data.jpeg import InvalidImageError
from adadf_dist.errors import UserError
from adadf_dist.files.csv_tables import detect_separator, parse_whole
from adadf_dist.files.text import decode_text, encoding_of, open_bytes
from shards.image_files import ImageEntry, SourceListing, check_relative_path, count_skipped, list_files
from shards.progress import track

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
NUM_PATHS_CHECKED = 100
"""Number of CSV rows whose images are searched for to find the image folder."""


class Row(NamedTuple):
    """One line of the CSV file."""

    path: str
    expression: int
    """Label from 0 to 10; see `affectnet.EXPRESSIONS`."""
    start: int
    """Byte offset of the line in the file."""


@dataclass(frozen=True)
class CsvAnnotations:
    """Reads an image's annotations from the CSV file on demand; keeping all of them would take 300 MB of memory."""

    files: Sequence[Path]
    columns: Sequence[Sequence[str]]
    separators: Sequence[str]
    file_of: array[int]
    """For each image, the index in `files` of the CSV file that lists it."""
    start_of: array[int]
    """For each image, the byte offset of its line in the CSV file that lists it."""

    def __call__(self, number: int) -> Mapping[str, object]:
        file = self.file_of[number]
        with self.files[file].open("rb") as stream:
            stream.seek(self.start_of[number])
            cells = split_cells(stream.readline().decode("utf-8"), self.separators[file])
        row = dict(zip(self.columns[file], cells, strict=True))
        try:
            left, top, width, height = (int(float(row[name])) for name in COLUMNS[1:5])
            points = [float(word) for word in row["facial_landmarks"].split(";")]
            valence, arousal = float(row["valence"]), float(row["arousal"])
        except (ValueError, OverflowError) as error:
            raise InvalidImageError(f"{self.files[file].name}: {error}") from None
        if not all(map(math.isfinite, (*points, valence, arousal))):
            raise InvalidImageError(f"{self.files[file].name}: landmarks, valence and arousal must be finite numbers")
        return {
            "box": [left, top, left + width, top + height],
            "landmarks": [points[i : i + 2] for i in range(0, len(points) - 1, 2)],
            "valence": valence,
            "arousal": arousal,
        }


def list_release(root: Path, classes: Sequence[str]) -> SourceListing:
    """List every image whose expression is among `classes`.

    Raises `UserError` if the release's CSV files are missing or malformed, or if its images are not found.
    """
    images: dict[str, ImageEntry] = {}
    left_out: Counter[str] = Counter()
    files: list[Path] = []
    columns: list[list[str]] = []
    separators: list[str] = []
    skipped = Skipped()
    file_of, start_of = array("b"), array("q")
    listed: set[str] = set()
    for split, name in FILES.items():
        path = root / name
        if not path.is_file():
            raise UserError(f"{path}: missing; AffectNet's 2017 release has training.csv and validation.csv")
        header, separator, rows = read_rows(path)
        base = find_images(root, path, rows)
        for row in rows:
            image = row.path if base == "." else f"{base}/{row.path}"
            listed.add(image)
            if row.expression >= len(classes):
                left_out["contempt_left_out" if row.expression == 7 else "without_expression"] += 1
            elif image in images:
                same = images[image].label == row.expression
                left_out["repeated_rows" if same else "repeated_rows_of_another_label"] += 1
            else:
                images[image] = ImageEntry(image, split, row.expression)
                file_of.append(len(files))
                start_of.append(row.start)
        files.append(path)
        columns.append(header)
        separators.append(separator)
    folders = {image.partition("/")[0] for image in images}
    extra = sum(path not in listed for folder in sorted(folders) for path in list_files(root, folder, skipped))
    stats = {**left_out, "images_without_annotation": extra, **count_skipped(skipped)}
    annotations = CsvAnnotations(files, columns, separators, file_of, start_of)
    return SourceListing("affectnet", tuple(classes), list(images.values()), "release of 2017", stats, annotations)


def read_rows(path: Path) -> tuple[list[str], str, list[Row]]:
    """Return a CSV file's column names, separator and rows. Raises `UserError` if it is malformed or empty."""
    with open_bytes(path) as stream:
        header, separator = read_header(path, stream)
        rows = list(track(parse_rows(path, stream, header, separator), f"reading {path.name}", unit="row"))
    if not rows:
        raise UserError(f"{path}: no lines after the header; re-download the file")
    return header, separator, rows


def read_header(path: Path, stream: io.BufferedReader) -> tuple[list[str], str]:
    """Return the column names and their separator. Raises `UserError` for a missing column or an unsupported encoding.

    Lines are located by byte offset, so the file must be UTF-8 with Unix or Windows line endings.
    """
    start = stream.readline()
    if encoding_of(start) != "utf-8-sig":
        raise UserError(f"{path}: text is UTF-16 or UTF-32; save it as UTF-8")
    text = decode_text(start, str(path))
    if "\n" in text.rstrip("\n"):
        raise UserError(f"{path}: has old Mac line endings; save it with Unix or Windows line endings")
    separator = detect_separator(text, COLUMNS)
    header = split_cells(text, separator)
    for column in COLUMNS:
        if column not in header:
            raise UserError(f"{path} line 1: no column {column}; AffectNet's columns are {', '.join(COLUMNS)}")
    return header, separator


def split_cells(line: str, separator: str) -> list[str]:
    """Return the cells of one line, without surrounding spaces. Raises `csv.Error` if the line is malformed."""
    return [cell.strip() for cell in next(csv.reader([line], delimiter=separator), [])]


def parse_rows(path: Path, lines: io.BufferedReader, header: Sequence[str], separator: str) -> Iterator[Row]:
    """Yield the parsed row for each line after the header. Raises `UserError` if a line is invalid."""
    path_column, expression_column = header.index("subDirectory_filePath"), header.index("expression")
    end = lines.tell()
    for number, line in enumerate(iter(lines.readline, b""), start=2):
        where, start = f"{path} line {number}", end
        end += len(line)
        if not line.strip():
            continue
        try:
            cells = split_cells(line.decode("utf-8"), separator)
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{where}: not a UTF-8 CSV file ({error}); re-download the file") from None
        if len(cells) != len(header):
            raise UserError(f"{where}: {len(cells)} cells, but the header has {len(header)} columns")
        expression = parse_whole(cells[expression_column])
        if expression is None or not 0 <= expression < EXPRESSIONS:
            raise UserError(
                f"{where}: expression {cells[expression_column]!r} must be a number from 0 to {EXPRESSIONS - 1}"
            )
        yield Row(check_relative_path(cells[path_column], where), expression, start)


def find_images(root: Path, file: Path, rows: Sequence[Row]) -> str:
    """Return the folder, relative to the root, that the CSV file's image paths refer to.

    Raises `UserError` if no image is found.
    """
    for base in IMAGES:
        if any((root / base / row.path).is_file() for row in rows[:NUM_PATHS_CHECKED]):
            return base
    folders = ", ".join(str(root / base) for base in IMAGES)
    raise UserError(
        f"{file}: none of the first {NUM_PATHS_CHECKED} images ({rows[0].path}, ...) was found in {folders}"
    )
