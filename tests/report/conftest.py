"""Finished runs to report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.runs import settings, train_here


@pytest.fixture(scope="package")
def run(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three epochs with the report that training wrote."""
    out = tmp_path_factory.mktemp("runs") / "run"
    more = {"class_distributions__threshold": "0.15", "evaluation__write_report": "true"}
    printed = train_here(settings(faces, out, epochs="3", **more))
    assert printed.splitlines()[-1] == f"report: {out / 'report.html'}"
    return out


@pytest.fixture(scope="package")
def copies(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for runs that equal `run` except for what a test changes."""
    return tmp_path_factory.mktemp("copies")


@pytest.fixture(scope="package")
def baseline(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with one-hot labels, whose report failed without harm."""
    out = tmp_path_factory.mktemp("runs") / "baseline"
    (out / "report.html").mkdir(parents=True)  # where the page would be written
    more = {"loss__supervision": "one_hot", "evaluation__write_report": "true"}
    last = train_here(settings(faces, out, epochs="1", **more)).splitlines()[-1]
    assert last.startswith("warning: report failed (UserError: ") and "python -m adadf_dist.report" in last
    assert json.loads((out / "status.json").read_text())["state"] == "finished"
    return out
