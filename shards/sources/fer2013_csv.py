"""FER2013's csv and FER+'s votes, read and checked row by row."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from adadf_dist.errors import UserError
from shards.progress import watched

SIDE = 48
EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""Names of the emotion ids 0 to 6."""
USAGES = ("Training", "PublicTest", "PrivateTest")
VOTE_COLUMNS = (
    *("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt"),
    *("unknown", "NF"),  # NF: not a face
)
CSV_NAMES = ("fer2013.csv", "fer2013.csv.gz", "icml_face_data.csv", "icml_face_data.csv.gz")
VOTES_NAME = "fer2013new.csv"


@dataclass(frozen=True)
class Faces:
    """The rows of FER2013's csv, N of them, in the order of the file."""

    file: str
    pixels: NDArray[np.uint8]
    """[N, 48, 48]"""
    emotions: NDArray[np.int64]
    """[N], ids 0 to 6."""
    usages: tuple[str, ...]


def find_csv(root: Path) -> Path:
    """FER2013's csv in a folder. Raises `UserError` when there is none, or more than one."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the one with fer2013.csv as --root")
    found = [root / name for name in CSV_NAMES if (root / name).is_file()]
    if not found:
        seen = sorted(path.name for path in root.iterdir())[:8]
        raise UserError(
            f"{root}: looked for {', '.join(CSV_NAMES)}, saw {', '.join(seen) or 'an empty folder'}; name it with --csv"
        )
    if len(found) > 1:
        raise UserError(f"{root}: holds {' and '.join(path.name for path in found)}; say which with --csv")
    return found[0]


def read_faces(path: Path) -> Faces:
    """Read `emotion,pixels,Usage` (in any order, plain or gzip). Raises `UserError`, naming the line."""
    pixels, emotions, usages = bytearray(), [], []
    with open_rows(path, ("emotion", "pixels", "Usage")) as rows:
        for line, (emotion, text, usage) in watched(rows, f"reading {path.name}"):
            if emotion not in ("0", "1", "2", "3", "4", "5", "6"):
                known = ", ".join(f"{number} {name}" for number, name in enumerate(EMOTIONS))
                raise UserError(f"{path}: line {line}: emotion {emotion!r} is unknown; known: {known}")
            if usage not in USAGES:
                raise UserError(f"{path}: line {line}: Usage {usage!r} is unknown; known: {', '.join(USAGES)}")
            pixels += parse_pixels(text, f"{path}: line {line}")
            emotions.append(int(emotion))
            usages.append(usage)
    faces = np.frombuffer(pixels, dtype=np.uint8).reshape(-1, SIDE, SIDE)
    return Faces(path.name, faces, np.array(emotions, dtype=np.int64), tuple(usages))


def parse_pixels(text: str, where: str) -> bytes:
    """The grey values of one face, row by row. Raises `UserError`."""
    try:
        pixels = bytes(map(int, text.split()))
    except ValueError as error:
        raise UserError(f"{where}: pixels must be whole numbers from 0 to 255 ({error}); get the file again") from None
    if len(pixels) != SIDE * SIDE:
        raise UserError(f"{where}: {len(pixels):,} pixels where {SIDE} x {SIDE} = 2,304 are needed; get the file again")
    return pixels


def read_votes(path: Path, faces: Faces) -> NDArray[np.int64]:
    """FER+'s votes [N, 10] of the same faces, in `VOTE_COLUMNS` order.

    Joined by row: the image names of FER+ are no row numbers. Raises `UserError`, naming the line.
    """
    votes: list[list[int]] = []
    with open_rows(path, ("Usage", *VOTE_COLUMNS)) as rows:
        for line, (usage, *counts) in rows:
            try:
                row = [int(count) for count in counts]
            except ValueError:
                raise UserError(f"{path}: line {line}: votes must be whole numbers, not {','.join(counts)}") from None
            if min(row) < 0:
                raise UserError(f"{path}: line {line}: a negative number of votes")
            number = len(votes)
            if number < len(faces.usages) and usage != faces.usages[number]:
                raise UserError(
                    f"{path}: line {line}: Usage {usage!r} where {faces.file} has {faces.usages[number]!r}; "
                    "the two are joined row by row and must list the same faces"
                )
            votes.append(row)
    if len(votes) != len(faces.usages):
        raise UserError(
            f"{path}: {len(votes):,} rows where {faces.file} has {len(faces.usages):,}; the two are joined row by row "
            "and must list the same faces"
        )
    return np.array(votes, dtype=np.int64).reshape(-1, len(VOTE_COLUMNS))


@contextmanager
def open_rows(path: Path, columns: tuple[str, ...]) -> Iterator[Iterator[tuple[int, list[str]]]]:
    """Yield an iterator over (line number, cells of `columns`). What is wrong with the file becomes a `UserError`."""
    try:
        with open_text(path) as stream:
            yield select_columns(path, stream, columns)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: damaged gzip file ({error}); get it again") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: no csv text ({error}); get it again") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None


def open_text(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def select_columns(path: Path, stream: TextIO, columns: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(stream)
    header = [name.strip() for name in next(reader, [])]  # one published copy of FER2013 has " Usage", " pixels"
    missing = [name for name in columns if name not in header]
    if missing:
        saw = ", ".join(header)[:80] or "an empty file"
        raise UserError(f"{path}: no column {', '.join(missing)} (saw {saw}); is this the right file?")
    places = [header.index(name) for name in columns]
    for cells in reader:
        if not cells:
            continue
        if len(cells) != len(header):
            raise UserError(f"{path}: line {reader.line_num}: {len(cells)} cells where the header has {len(header)}")
        yield reader.line_num, [cells[place].strip() for place in places]
