"""Tables for the terminal and Markdown, with the first column left-aligned and the others right-aligned."""

from __future__ import annotations

from collections.abc import Sequence


def align_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Format rows as lines of text, with each column as wide as its longest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())
    return lines


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    alignment = "|---" + "|--:" * (len(head) - 1) + "|"
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return [lines[0], alignment, *lines[1:]]
