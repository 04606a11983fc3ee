"""User errors and damaged runs, as the report command prints them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from adadf_dist.report.__main__ import main
from adadf_dist.report.figures.tracked_sample import find_tracked_sample
from adadf_dist.report.run_reader import open_run
from tests.helpers.reports import copy_run, error_line
from tests.helpers.runs import finish


def test_truncated_run_files_are_handled(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truncated = copy_run(run, tmp_path / "truncated")
    with (truncated / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "epoch", "\xff\xfe')
    assert len(open_run(truncated).epochs) == 3
    (truncated / "history" / "epoch-0002.npz").write_bytes(b"")
    assert "epoch-0002.npz: truncated or corrupt" in error_line([str(truncated)], capsys)


def test_user_errors_are_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such run folder" in error_line([str(tmp_path / "nowhere")], capsys)
    assert "not a run folder of adadf_dist.train" in error_line([str(tmp_path)], capsys)
    assert "listed twice" in error_line([str(run), f"{run}/", "--out", str(tmp_path / "x.html")], capsys)
    unfinished = copy_run(run, tmp_path / "begun")
    (unfinished / "metrics.jsonl").write_text("")
    assert "has not finished an epoch yet" in error_line([str(unfinished)], capsys)
    sample = find_tracked_sample(open_run(run))
    assert sample is not None
    assert f"did you mean {sample.key}?" in error_line([str(run), "--sample", f"{sample.key}x"], capsys)
    with np.load(run / "history" / "epoch-0001.npz") as epoch, np.load(run / "samples.npz") as columns:
        other = next(str(key) for n, key in enumerate(columns["keys"]) if n not in epoch["tracked_samples"].tolist())
    assert f"runtime.tracked_samples {other}" in error_line([str(run), "--sample", other], capsys)
    for path in (unfinished / "history").glob("*.npz"):  # as with a sampler that skipped the sample
        with np.load(path) as arrays:
            columns = dict(arrays)
        columns["seen"][columns["tracked_samples"]] = 0
        np.savez(path, **columns)
    shutil.copy(run / "metrics.jsonl", unfinished)
    assert "not sampled in any finished epoch yet" in error_line([str(unfinished), "--sample", sample.key], capsys)
    assert find_tracked_sample(open_run(unfinished)) is None
    existing = tmp_path / "mine.html"
    existing.write_text("mine")
    assert "--overwrite to replace it" in error_line([str(run), "--out", str(existing)], capsys)
    assert existing.read_text() == "mine"
    assert "is a folder" in error_line([str(run), "--out", str(tmp_path)], capsys)
    assert "is not a folder" in error_line([str(run), "--out", str(existing / "x.html")], capsys)
    main([str(run), "--out", str(existing), "--overwrite", "--sample", sample.key])
    assert existing.read_text().startswith("<!doctype html>")


def test_training_does_not_import_plotting() -> None:
    script = "import sys, adadf_dist.train; sys.exit(any(m in sys.modules for m in ('matplotlib', 'sklearn')))"
    assert finish([sys.executable, "-c", script]).returncode == 0
