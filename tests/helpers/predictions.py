"""Run predict in this process, and read its rows."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from adadf_dist.predict.__main__ import main

CLASSES = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "anger")


def predict(capsys: pytest.CaptureFixture[str], *words: object, status: int = 0) -> tuple[str, list[str]]:
    """Standard output, and the lines of standard error."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    said = capsys.readouterr()
    assert ended.value.code == status, said.err
    return said.out, said.err.splitlines()


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    out, lines = predict(capsys, *words, status=2)
    assert not out
    assert len(lines) == 1, lines
    return lines[0]


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def shares(rows: list[dict[str, str]]) -> np.ndarray:
    """[n, C]"""
    return np.array([[float(row[f"p_{name}"]) for name in CLASSES] for row in rows])
