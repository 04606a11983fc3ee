"""Rows as text: csv, JSON lines, or a table for the eye."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Literal, Protocol

from adadf_dist.predict.stream import Row
from adadf_dist.text_files import escape_name

FormatName = Literal["csv", "jsonl", "table"]
DIGITS = 6
"""Decimals of a probability."""


class Format(Protocol):
    def head(self) -> str:
        """What stands before the rows, with its line end."""

    def line(self, row: Row) -> str: ...


def make_format(name: FormatName, classes: Sequence[str], aligned: bool) -> Format:
    """`aligned`: the number of faces found in each picture is told too."""
    kinds: dict[str, type[Csv | JsonLines | Table]] = {"csv": Csv, "jsonl": JsonLines, "table": Table}
    return kinds[name](classes, aligned)


class Csv:
    """path, label, confidence, p_CLASS for each class, faces (when aligned), error."""

    def __init__(self, classes: Sequence[str], aligned: bool) -> None:
        self.classes, self.aligned = classes, aligned

    def head(self) -> str:
        faces = ["faces"] * self.aligned
        return as_csv(["path", "label", "confidence", *(f"p_{name}" for name in self.classes), *faces, "error"])

    def line(self, row: Row) -> str:
        face, p = row
        values = [""] * (2 + len(self.classes))
        if p is not None:
            values = [self.classes[int(p.argmax())], *(f"{share:.{DIGITS}f}" for share in (p.max(), *p))]
        faces = ["" if face.found is None else str(face.found)] * self.aligned
        return as_csv([face.name, *values, *faces, face.error])


def as_csv(cells: Sequence[str]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerow(cells)
    return stream.getvalue()


class JsonLines:
    """An object a line: path, label, confidence, probabilities by class, faces (when aligned), error; or null.

    Bytes of a path that are not UTF-8, control characters and backslashes are written as `\\xNN`.
    """

    def __init__(self, classes: Sequence[str], aligned: bool) -> None:
        self.classes, self.aligned = classes, aligned

    def head(self) -> str:
        return ""

    def line(self, row: Row) -> str:
        face, p = row
        values: dict[str, object] = {
            "path": escape_name(face.name),
            "label": None,
            "confidence": None,
            "probabilities": None,
        }
        if p is not None:
            shares = {name: round(float(share), DIGITS) for name, share in zip(self.classes, p, strict=True)}
            values |= {
                "label": self.classes[int(p.argmax())],
                "confidence": max(shares.values()),
                "probabilities": shares,
            }
        if self.aligned:
            values["faces"] = face.found
        return json.dumps({**values, "error": face.error or None}) + "\n"


class Table:
    """Fixed columns, the path last, for it may be of any length."""

    def __init__(self, classes: Sequence[str], aligned: bool) -> None:
        self.classes, self.aligned = classes, aligned
        self.width = max(len("label"), *map(len, classes))

    def head(self) -> str:
        cells = ["label".ljust(self.width), "confidence", *(name.rjust(7) for name in self.classes)]
        return "  ".join([*cells, *["faces"] * self.aligned, "path"]) + "\n"

    def line(self, row: Row) -> str:
        face, p = row
        names = ["-".ljust(self.width), "-".rjust(10), *("-".rjust(max(7, len(name))) for name in self.classes)]
        if p is not None:
            names = [self.classes[int(p.argmax())].ljust(self.width), f"{p.max():10.1%}"]
            names += [f"{share:{max(7, len(name))}.1%}" for name, share in zip(self.classes, p, strict=True)]
        faces = [("-" if face.found is None else str(face.found)).rjust(5)] * self.aligned
        path = face.name if face.name.isprintable() else ascii(face.name)[1:-1]  # no name moves the terminal's cursor
        return "  ".join([*names, *faces, path + (f": {face.error}" if face.error else "")]) + "\n"
