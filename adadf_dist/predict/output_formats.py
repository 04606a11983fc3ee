"""Output formats: CSV, JSON Lines, or a human-readable table. All three have the same columns."""

from __future__ import annotations

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from adadf_dist.data.jpeg import Box
from adadf_dist.files.text import escape_name
from adadf_dist.predict.predictor import Row

DIGITS = 6
"""Number of decimals of a probability."""
Value: TypeAlias = str | int | float | None


class Columns(NamedTuple):
    """Output columns other than `path`, `prediction`, `confidence` and `error`."""

    classes: tuple[str, ...]
    """Classes of the model; each has a probability column."""
    label_classes: tuple[str, ...] = ()
    """Possible values of the `label` column (true classes of a dataset); empty if there is no such column."""
    vote_classes: tuple[str, ...] = ()
    """Dataset classes; each has a column with its number of votes."""
    has_faces: bool = False
    """Whether there is a `faces` column with the number of faces found in the image."""
    has_boxes: bool = False
    """Whether the table has the columns `face` (index of the face) and `box_*` (its position in the image)."""


class Record(NamedTuple):
    """Values of an output row, grouped by kind; None for an empty cell."""

    result: dict[str, Value]
    """`path`, `prediction` and `confidence`."""
    probabilities: dict[str, float] | None
    """Model class -> probability; None for a row without a prediction."""
    annotation: dict[str, Value]
    """The true `label` of a dataset sample; empty if the output has no such column."""
    votes: dict[str, Value] | None
    """Dataset class -> number of votes; None if the sample has no votes."""
    detection: dict[str, Value]
    """Face detection results: whichever of the `faces`, `face` and `box_*` columns are present."""
    error: str


def make_record(row: Row, columns: Columns) -> Record:
    face, p = row
    source = face.source
    probabilities = None if p is None else dict(zip(columns.classes, map(float, p), strict=True))
    best = None if p is None else int(p.argmax())
    detection: dict[str, Value] = {}
    if columns.has_faces:
        detection["faces"] = face.found
    if columns.has_boxes:
        box = face.box or (None,) * len(Box._fields)
        detection |= {"face": face.number, **dict(zip(box_columns(), box, strict=True))}
    return Record(
        result={
            "path": source.name,
            "prediction": None if best is None else columns.classes[best],
            "confidence": None if p is None else float(p.max()),
        },
        probabilities=probabilities,
        annotation={"label": source.label} if columns.label_classes else {},
        votes=None if source.votes is None else {name: as_count(votes) for name, votes in source.votes.items()},
        detection=detection,
        error=face.error,
    )


def box_columns() -> list[str]:
    return [f"box_{side}" for side in Box._fields]


def detection_columns(columns: Columns) -> list[str]:
    return ["faces"] * columns.has_faces + ["face", *box_columns()] * columns.has_boxes


def as_count(votes: float) -> int | float:
    """Return a vote count as an int if it is whole, else as a rounded float: some datasets have weighted votes."""
    return int(votes) if votes == int(votes) else round(votes, DIGITS)


class Format(ABC):
    """Base class of the output formats, which convert rows to text."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns

    def head(self) -> str:
        """Return the text before the rows, including its newline."""
        return ""

    @abstractmethod
    def line(self, row: Row) -> str:
        """Return the text of one row, including its newline."""


class Csv(Format):
    """CSV with the columns path, prediction, confidence, p_CLASS, label, votes_CLASS, faces, face, box_* and error."""

    def head(self) -> str:
        names = ["path", "prediction", "confidence", *(f"p_{name}" for name in self.columns.classes)]
        names += ["label"] * bool(self.columns.label_classes)
        names += [f"votes_{name}" for name in self.columns.vote_classes]
        return as_csv([*names, *detection_columns(self.columns), "error"])

    def line(self, row: Row) -> str:
        record = make_record(row, self.columns)
        probabilities, votes = record.probabilities or {}, record.votes or {}
        predicted = [*record.result.values(), *(probabilities.get(name) for name in self.columns.classes)]
        cells = [f"{value:.{DIGITS}f}" if isinstance(value, float) else as_text(value) for value in predicted]
        given = [*record.annotation.values(), *(votes.get(name) for name in self.columns.vote_classes)]
        return as_csv([*cells, *map(as_text, (*given, *record.detection.values())), record.error])


def as_text(value: Value) -> str:
    return "" if value is None else str(value)


def as_csv(cells: Sequence[str]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow(cells)
    return stream.getvalue()


class JsonLines(Format):
    """One JSON object per line. `probabilities` and `votes` are objects keyed by class; missing values are null.

    Bytes of a path that are not UTF-8, control characters and backslashes are written as `\\xNN`.
    """

    def line(self, row: Row) -> str:
        record = make_record(row, self.columns)
        values: dict[str, object] = {**record.result, "path": escape_name(row.face.source.name)}
        values["probabilities"] = None
        if record.probabilities is not None:
            probabilities = {name: round(value, DIGITS) for name, value in record.probabilities.items()}
            values |= {"confidence": max(probabilities.values()), "probabilities": probabilities}
        values |= record.annotation
        if self.columns.vote_classes:
            values["votes"] = record.votes
        return json.dumps({**values, **record.detection, "error": record.error or None}) + "\n"


class Table(Format):
    """Human-readable table with aligned columns. The path is last, followed by the error, if any."""

    def __init__(self, columns: Columns) -> None:
        super().__init__(columns)
        self.width = max(len("prediction"), *map(len, columns.classes))
        self.label_width = max(map(len, ("label", *columns.label_classes)))

    def head(self) -> str:
        cells = ["prediction".ljust(self.width), "confidence", *(name.rjust(7) for name in self.columns.classes)]
        cells += ["label".ljust(self.label_width)] * bool(self.columns.label_classes)
        cells += [f"votes_{name}" for name in self.columns.vote_classes]
        return "  ".join([*cells, *(name.rjust(5) for name in detection_columns(self.columns)), "path"]) + "\n"

    def line(self, row: Row) -> str:
        record = make_record(row, self.columns)
        probabilities, votes = record.probabilities or {}, record.votes or {}
        confidence = "-" if row.probabilities is None else f"{row.probabilities.max():.1%}"
        cells = [(as_text(record.result["prediction"]) or "-").ljust(self.width), confidence.rjust(10)]
        for name in self.columns.classes:
            cells.append((f"{probabilities[name]:.1%}" if probabilities else "-").rjust(max(7, len(name))))
        cells += [(as_text(label) or "-").ljust(self.label_width) for label in record.annotation.values()]
        cells += [(as_text(votes.get(name)) or "-").rjust(len(f"votes_{name}")) for name in self.columns.vote_classes]
        cells += [(as_text(value) or "-").rjust(max(5, len(name))) for name, value in record.detection.items()]
        path = row.face.source.name
        path = path if path.isprintable() else ascii(path)[1:-1]  # prevent names from controlling the terminal
        return "  ".join([*cells, path + (f": {record.error}" if record.error else "")]) + "\n"


FORMATS: dict[str, type[Format]] = {"csv": Csv, "jsonl": JsonLines, "table": Table}
