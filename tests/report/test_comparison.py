"""Several runs in a report: groups paired by seed, runs that cannot be compared."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from statistics import fmean

import pytest

from adadf_dist.report.__main__ import main
from adadf_dist.report.api import report
from adadf_dist.report.comparison import compare_groups
from adadf_dist.report.run_reader import open_run
from tests.helpers.reports import Page, copy_run, error_line


def test_several_runs_are_paired_by_seed(run: Path, copies: Path, tmp_path: Path) -> None:
    first, second = [0.50, 0.60, 0.70], [0.52, 0.65, 0.71]
    mine = [copy_run(run, copies / f"mine{seed}", value, seed=str(seed)) for seed, value in enumerate(first)]
    theirs = [
        copy_run(run, copies / f"theirs{seed}", value, seed=str(seed), loss__lambda_min="0.4")
        for seed, value in enumerate(second)
    ]
    (pair,) = compare_groups([open_run(folder) for folder in (*mine, *theirs)])
    assert (pair.name, pair.measure, pair.seeds) == ("loss.lambda_min = 0.4 (was 0.2)", "test", (0, 1, 2))
    assert pair.difference is not None
    assert pair.difference.mean == pytest.approx(fmean([0.02, 0.05, 0.01]))
    report([*mine, *theirs], tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    # seeds: t(0.975, 2) = 4.3027, the differences' standard deviation is 2.0817 points. Samples: the predictions stored
    # are not of these accuracies, so 30 samples are taken as unpaired, with binomial variances
    share = [(30 * fmean(values) + 2) / 34 for values in (first, second)]
    sampling = sum(p * (1 - p) / 30 for p in share)
    half = 100 * math.sqrt(4.3027**2 * 0.020817**2 / 3 + 1.959964**2 * sampling)
    interval = f"95% interval {2.6667 - half:+.2f} to {2.6667 + half:+.2f} over seeds 0, 1, 2 and 30 samples"
    assert f"+2.67 points, {interval}: too few seeds or samples to tell" in page.text
    assert "loss.lambda_min" in page.text and "theirs2" in page.text
    assert [name for name, count in Counter(page.ids).items() if count > 1] == []

    (alone,) = compare_groups([open_run(mine[0]), open_run(theirs[0])])
    assert alone.difference is None
    assert compare_groups([open_run(mine[0]), open_run(theirs[1])]) == [], "no seed in common"
    profiled = copy_run(theirs[0], copies / "watched", runtime__profile_steps="5")
    assert len(compare_groups([open_run(mine[0]), open_run(profiled)])) == 1, "a profile is no other way of training"
    assert compare_groups([open_run(mine[0]), open_run(mine[1])]) == [], "one way of training"


def test_incomparable_runs_are_rejected(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another task, or a seed that occurs twice in a group: no difference is computed."""
    twin = copy_run(run, tmp_path / "twin", 0.1)
    other = copy_run(run, tmp_path / "other")
    facts = json.loads((other / "run_info.json").read_text())
    (other / "run_info.json").write_text(json.dumps({**facts, "dataset": "other-faces"}))
    cleaned = copy_run(run, tmp_path / "cleaned", loss__lambda_min="0.4")
    (cleaned / "run_info.json").write_text(json.dumps({**facts, "faces": {**facts["faces"], "train": 60}}))
    page = str(tmp_path / "page.html")
    assert "same settings and seed as" in error_line([str(run), str(twin), "--out", page], capsys)
    assert "evaluated on a different dataset than" in error_line([str(run), str(other), "--out", page], capsys)
    assert not Path(page).exists()
    main([str(run), str(cleaned), "--out", page])
