"""Read user-written CSV tables in various dialects, and lists with a name and a label per line.

The separator (comma, semicolon, tab, vertical bar or, in lists, blanks) is detected, cells are stripped, and every
error is a `UserError` that names the file and the line.
"""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from adadf_dist.errors import UserError, did_you_mean
from adadf_dist.files.text import plain_form

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars", " ": "blanks"}
"""Maps each separator to its name in messages. Blanks separate cells only in lists, not in tables."""
MAX_CELL = csv.field_size_limit()
"""Maximum length of a cell in characters."""

MAX_NUMBER = 2**24
"""Largest accepted vote or fraction. Numbers are stored as float32, which is exact for integers up to this value."""

_WHOLE = re.compile(r"\s*([+-]?[0-9]+)(?:\.0*|,0)?\s*", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]*,[0-9]+", re.ASCII)
_THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(,[0-9]{3})+", re.ASCII)


class NoColumnError(UserError):
    """Raised if the header of a CSV file lacks a required column."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


class Row(NamedTuple):
    """A row of a table or list; its cells have no surrounding whitespace."""

    where: str
    """File and line number, for error messages."""
    line: int
    cells: list[str]


@dataclass(frozen=True)
class Table:
    """A CSV table with a header. Its rows can be read only once."""

    where: str
    separator: str
    header: tuple[str, ...]
    """Column names. Requested columns are spelled as requested; unnamed columns are empty strings."""
    rows: Iterator[Row]
    """Rows, each with as many cells as the header has columns."""

    def select(self, columns: Sequence[str]) -> Iterator[tuple[Row, list[str]]]:
        """Yield each row with its cells in the given columns, in the given order."""
        indices = [self.header.index(name) for name in columns]
        for row in self.rows:
            yield row, [row.cells[index] for index in indices]

    def records(self) -> Iterator[tuple[Row, dict[str, str]]]:
        """Yield each row with a dictionary that maps column names to cells, without unnamed columns."""
        for row in self.rows:
            yield row, {name: cell for name, cell in zip(self.header, row.cells, strict=True) if name}

    def note(self) -> str:
        """Return a note that names the separator, or an empty string if it is a comma."""
        return separator_note(self.where, self.separator)


def separator_note(where: str, separator: str) -> str:
    """Return a note that names the separator, or an empty string if it is a comma."""
    return "" if separator == "," else f"{where}: cells are separated by {SEPARATORS[separator]}"


def open_table(lines: Iterable[str], where: str, required: Sequence[str], optional: Sequence[str] = ()) -> Table:
    """Read the header of a CSV table, which must have each required column once, in any order and letter case.

    Raises `UserError` for an invalid header; errors in rows are raised when the rows are read.
    """
    lines = iter(lines)
    number, header_line = _first_line(lines)
    separator = None
    if re.fullmatch("sep=.", header_line.strip(), re.IGNORECASE | re.ASCII):  # written by spreadsheet programs
        separator = header_line.strip()[4]
        if separator not in SEPARATORS:
            raise UserError(f"{where}: line {number}: unsupported separator {separator!r}; use a comma or a semicolon")
        skipped, header_line = _first_line(lines)
        number += skipped
    separator = separator or detect_separator(header_line, (*required, *optional))
    rows = read_rows(chain([header_line], lines), where, separator, number)
    header_row = next(rows, Row(f"{where}: line 1", 1, []))
    header = _name_columns(header_row, required, optional)
    return Table(where, separator, header, (_fit(row, header) for row in rows))


def read_rows(lines: Iterable[str], where: str, separator: str, first: int = 1) -> Iterator[Row]:
    """Yield the rows of text lines, skipping empty lines; `first` is the number of the first line.

    Raises `UserError` if a line is not valid CSV.
    """
    if separator == " ":
        for number, line in enumerate(lines, start=first):
            if line.strip():
                yield Row(f"{where}: line {number}", number, line.split())
        return
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=separator != "\t", strict=True)
    while True:
        start = first + reader.line_num
        position = f"{where}: line {start}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(f"{position}: {_quoting_problem(str(error))}") from None
        if any(map(str.strip, cells)):
            yield Row(position, start, [cell.strip() for cell in cells])


def read_list(lines: Iterable[str], where: str) -> Iterator[Row]:
    """Yield the rows of a list or matrix, whose first nonempty line determines the separator.

    Raises `UserError` if a line is not valid CSV.
    """
    lines = iter(lines)
    for number, line in enumerate(lines, start=1):
        if line.strip():
            separator = detect_separator(line, blanks=True)
            yield from read_rows(chain([line], lines), where, separator, number)


def detect_separator(line: str, columns: Sequence[str] = (), blanks: bool = False) -> str:
    """Return the separator that splits a line into the most expected columns or, if that is a tie, into the most cells.

    If the line contains no separator, return a comma, or a blank if `blanks` is true.
    """
    wanted = {name.casefold() for name in columns}
    best, best_score = " " if blanks else ",", (0, 1)
    for separator in SEPARATORS:
        if separator == " ":
            continue
        cells = _split(line, separator)
        score = (len(wanted & {cell.casefold() for cell in cells}), len(cells))
        if score[1] > 1 and score > best_score:
            best, best_score = separator, score
    return best


def read_votes(cells: Sequence[str], where: str) -> tuple[float, ...]:
    """Read votes or fractions per class. An empty cell is 0. Raises `UserError` for negative or non-finite numbers."""
    return tuple(read_number(cell, where, "votes") if cell else 0.0 for cell in cells)


def read_number(text: str, where: str, what: str) -> float:
    """Parse a number from 0 to `MAX_NUMBER`, with a decimal point or comma. Raises `UserError` for anything else."""
    value = parse_number(text)
    if not math.isfinite(value) or value < 0:
        raise UserError(f"{where}: {what} must be nonnegative numbers, not {text[:40]!r}")
    if value > MAX_NUMBER:
        raise UserError(f"{where}: {what} must be at most {MAX_NUMBER:,}, not {text[:40]!r}")
    return value


def parse_number(text: str) -> float:
    """Parse a number with a decimal point or comma; return NaN if it is invalid or the comma may separate thousands."""
    if _THOUSANDS.fullmatch(text):
        return math.nan
    try:
        return float(text.replace(",", ".") if _DECIMAL_COMMA.fullmatch(text) else text)
    except ValueError:
        return math.nan


def parse_whole(text: str) -> int | None:
    """Parse an integer, which may be written as `3.0`; return None if the text is anything else."""
    found = _WHOLE.fullmatch(text)
    return int(found[1]) if found and len(found[1]) < 18 else None


def find_class(word: str, classes: Sequence[str]) -> int | None:
    """Return the index of the class with this name, ignoring letter case and Unicode form unless that is ambiguous."""
    if word in classes:
        return classes.index(word)
    plain = plain_form(word)
    found = [label for label, name in enumerate(classes) if plain_form(name) == plain]
    return found[0] if len(found) == 1 else None


def _first_line(lines: Iterator[str]) -> tuple[int, str]:
    """Return the number and text of the first nonempty line, or (1, "") if there is none."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            return number, line
    return 1, ""


def _split(line: str, separator: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])]
    except csv.Error:
        return []


def _quoting_problem(reason: str) -> str:
    if "field larger" in reason:
        return f"a cell of more than {MAX_CELL:,} characters; is a quotation mark not closed?"
    if "unexpected end of data" in reason:
        return "a quotation mark is not closed"
    return f"a quotation mark in the wrong place ({reason}); double it inside a quoted cell"


def _name_columns(row: Row, required: Sequence[str], optional: Sequence[str]) -> tuple[str, ...]:
    asked = {name.casefold(): name for name in (*required, *optional)}
    header = tuple(asked.get(cell.casefold(), cell) for cell in row.cells)
    missing = [name for name in required if name not in header]
    if missing:
        names = ", ".join(name for name in header if name)[:100] or "nothing"
        close = did_you_mean(missing[0], [name for name in header if name])
        raise NoColumnError(
            f"{row.where}: no column {', '.join(missing)}; the header has {names}{close or '; add the column names'}",
            row.line,
        )
    twice = [name for name, count in Counter(header).items() if name and count > 1]
    if twice:
        raise UserError(f"{row.where}: column {twice[0]} appears twice; keep one, or rename the other")
    return header


def _fit(row: Row, header: Sequence[str]) -> Row:
    """Fit a row to the header by dropping extra empty cells. Raises `UserError` if the number of cells is wrong."""
    extra = row.cells[len(header) :]
    if len(row.cells) < len(header) or any(extra):
        raise UserError(
            f"{row.where}: {len(row.cells)} cells, but the header has {len(header)} columns; a cell that contains the "
            "separator must be quoted"
        )
    return row._replace(cells=row.cells[: len(header)])
