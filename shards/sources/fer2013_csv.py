"""Reads and validates FER2013's CSV file and FER+'s CSV file of votes."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adadf_dist.console.logs import get_logger
from adadf_dist.data.build.folder_tree import check_root, is_archive, list_entries, subfolders
from adadf_dist.errors import UserError
from adadf_dist.files.csv_tables import MAX_NUMBER, NoColumnError, open_table, parse_whole
from adadf_dist.files.text import decode_lines, escape_name, located, open_bytes
from shards.progress import track

logger = get_logger(__name__)

SIDE = 48
EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""Names of the emotions for FER2013 labels 0 to 6, in order."""
USAGES = ("Training", "PublicTest", "PrivateTest")
VOTE_COLUMNS = (
    *("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"),
    *("unknown", "NF"),  # NF: not a face
)
CSV_NAMES = ("fer2013.csv", "fer2013.csv.gz", "icml_face_data.csv", "icml_face_data.csv.gz")
VOTES_NAME = "fer2013new.csv"


@dataclass(frozen=True)
class Faces:
    """The N rows of FER2013's CSV file, in file order."""

    file: str
    pixels: NDArray[np.uint8]
    """[N, 48, 48], gray pixels."""
    emotions: NDArray[np.int64]
    """[N], label of each face, as an index into `EMOTIONS`."""
    usages: tuple[str, ...]
    """[N], original split of each face, one of `USAGES`."""

    def describe_row(self, number: int) -> str:
        return f"{self.file} row {number}"


def find_csv(root: Path) -> Path:
    """Return the path of FER2013's CSV file in a folder. Raises `UserError` if there is none or more than one."""
    check_root(root, "pass the folder with fer2013.csv as --root")
    found = [root / name for name in CSV_NAMES if (root / name).is_file()]
    if len(found) > 1:
        raise UserError(f"{root}: contains {' and '.join(path.name for path in found)}; pass one as --csv")
    if found:
        return found[0]
    existing = [entry.name for entry in list_entries(root)]
    archives = [name for name in existing if is_archive(name)]
    below = [f"{name}/{file}" for name in subfolders(root) for file in CSV_NAMES if (root / name / file).is_file()]
    if below:
        raise UserError(f"{root}: the CSV file is in the subfolder {below[0]}; pass --root {(root / below[0]).parent}")
    if archives:
        raise UserError(f"{root}: {archives[0]} is an archive; unpack it and pass fer2013.csv's folder as --root")
    raise UserError(
        f"{root}: expected one of {', '.join(CSV_NAMES)}, found "
        f"{', '.join(existing[:8]) or 'nothing'}; pass the file as --csv FILE"
    )


def read_faces(path: Path) -> Faces:
    """Read a plain or gzip CSV file with the columns emotion, pixels and Usage, in any order.

    Raises `UserError` if the CSV file is malformed or contains an unknown emotion or Usage.
    """
    pixels, emotions, usages = bytearray(), [], []
    with open_rows(path, ("emotion", "pixels", "Usage")) as rows:
        for where, (emotion, text, usage) in track(rows, f"reading {path.name}"):
            number = parse_whole(emotion)
            if number is None or not 0 <= number < len(EMOTIONS):
                known = ", ".join(f"{number} {name}" for number, name in enumerate(EMOTIONS))
                raise UserError(f"{where}: emotion {emotion[:40]!r} is unknown; known: {known}")
            if usage not in USAGES:
                raise UserError(f"{where}: Usage {usage[:40]!r} is unknown; known: {', '.join(USAGES)}")
            pixels += parse_pixels(text, where)
            emotions.append(number)
            usages.append(usage)
    faces = np.frombuffer(pixels, dtype=np.uint8).reshape(-1, SIDE, SIDE)
    return Faces(escape_name(path.name), faces, np.array(emotions, dtype=np.int64), tuple(usages))


def parse_pixels(text: str, where: str) -> bytes:
    """Return the 48 x 48 gray values of one face from its CSV cell. Raises `UserError` if the cell is malformed."""
    try:
        pixels = bytes(map(int, text.split()))
    except ValueError as error:
        raise UserError(f"{where}: pixels must be integers from 0 to 255 ({error}); re-download the file") from None
    if len(pixels) != SIDE * SIDE:
        raise UserError(f"{where}: {len(pixels):,} pixels, expected {SIDE} x {SIDE} = 2,304; re-download the file")
    return pixels


def read_votes(path: Path, faces: Faces) -> NDArray[np.int64]:
    """Return FER+'s votes [N, 10] for the faces in `faces`, with columns as in `VOTE_COLUMNS`.

    Raises `UserError` if the CSV file is malformed or does not list the same faces.

    Votes are matched to faces by row, because the image names in FER+'s CSV file are not row numbers.
    """
    votes: list[list[int]] = []
    with open_rows(path, ("Usage", *VOTE_COLUMNS)) as rows:
        for where, (usage, *counts) in rows:
            row = [number for count in counts if (number := parse_whole(count)) is not None]
            if len(row) < len(counts):
                raise UserError(f"{where}: votes must be integers, not {','.join(counts)[:80]}")
            if min(row) < 0:
                raise UserError(f"{where}: votes must not be negative")
            if max(row) > MAX_NUMBER:
                raise UserError(
                    f"{where}: vote count {max(row):,} exceeds the maximum of {MAX_NUMBER:,}; re-download the file"
                )
            number = len(votes)
            if number < len(faces.usages) and usage != faces.usages[number]:
                raise UserError(
                    f"{where}: Usage {usage[:40]!r}, but {faces.file} has {faces.usages[number]!r}; "
                    "the files are joined row by row and must list the same faces"
                )
            votes.append(row)
    if len(votes) != len(faces.usages):
        raise UserError(
            f"{path}: {len(votes):,} rows, but {faces.file} has {len(faces.usages):,}; the files are joined row by row "
            "and must list the same faces"
        )
    return np.array(votes, dtype=np.int64).reshape(-1, len(VOTE_COLUMNS))


@contextmanager
def open_rows(path: Path, columns: tuple[str, ...]) -> Iterator[Iterator[tuple[str, list[str]]]]:
    """Open a plain or gzip CSV file, and yield an iterator over its rows: location (file, line) and cells of `columns`.

    Gzip is recognized by content or by the suffix .gz. Raises `UserError` if the file is corrupt or lacks a column.
    """
    where = located(path)
    try:
        with open_bytes(path) as raw:
            packed = path.suffix.lower() == ".gz" or raw.peek(2)[:2] == b"\x1f\x8b"
            lines = decode_lines(io.BufferedReader(gzip.GzipFile(fileobj=raw)) if packed else raw, where)
            table = open_table(lines, where, columns)
            if note := table.note():
                logger.info(f"note: {note}")
            yield ((row.where, cells) for row, cells in table.select(columns))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{where}: corrupt gzip file ({error}); re-download it") from None
    except NoColumnError as error:
        raise UserError(f"{error}; is this the right file?") from None
