"""Tables, numbers and findings as users see them."""

from __future__ import annotations

import pytest

from adadf_dist.console.formats import format_duration, format_gb, format_mib, plural
from adadf_dist.console.tables import align_columns, markdown_table
from adadf_dist.findings import Finding, Severity, ok, summarize_severities, warning, worst_severity


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    rows = [["class", "train", ""], ["sad", "4,830", "x"], ["happiness", "7", ""]]
    assert align_columns(rows) == [
        "class      train",
        "sad        4,830  x",
        "happiness      7",
    ]


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        align_columns([["a", "b"], ["c"]])


def test_a_markdown_table_aligns_numbers_to_the_right() -> None:
    assert markdown_table(["split", "samples"], [["train", "1,000"], ["test", "7"]]) == [
        "| split | samples |",
        "|---|--:|",
        "| train | 1,000 |",
        "| test | 7 |",
    ]


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (1, "face", "1 face"),
        (0, "rank", "0 ranks"),
        (2000, "face", "2,000 faces"),
        (3, "copy", "3 copies"),
        (7, "class", "7 classes"),
    ],
)
def test_plurals(count: int, noun: str, text: str) -> None:
    assert plural(count, noun) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0m00s"), (59.6, "1m00s"), (187, "3m07s"), (3599.4, "59m59s"), (7500, "2h05m")]
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_bytes() -> None:
    assert [format_gb(n) for n in (5.2e8, 9.994e9, 1.2e12)] == ["0.52 GB", "9.99 GB", "1,200 GB"]
    assert [format_mib(n) for n in (0, 2**30 + 2**19)] == ["0.0 MiB", "1,024.5 MiB"]


def test_findings_are_counted_from_the_worst_on() -> None:
    info = Finding("b", Severity.INFO, "c")
    found = [ok("a", "b"), info, info, warning("a", "b", "c"), Finding("a", Severity.ERROR, "b"), ok("c", "d")]
    assert summarize_severities(found) == "1 error, 1 warning, 2 info, 2 ok"
    assert summarize_severities([warning("a", "b", "c")] * 3) == "3 warnings"
    assert [worst_severity(found[:n]).exit_status for n in (0, 1, 2, 4, 5)] == [0, 0, 0, 1, 2]


def test_a_finding_keeps_its_key_while_its_numbers_change() -> None:
    first, second = (Finding("dead class", Severity.WARNING, f"{n} epochs", "wait", "fear") for n in (3, 4))
    assert first.key == second.key
    assert first.key != Finding("dead class", Severity.WARNING, "3 epochs", "wait", "sad").key
    assert str(first) == "warning: dead class: 3 epochs; wait"
    assert Finding("a", Severity.INFO, "b").line == "b"
