"""Paired differences against scipy's own tests, and a comparison of a way of training with itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scipy import stats

from adadf_dist.bench.__main__ import main
from adadf_dist.comparison import paired_difference
from tests.runs import settings

FIRST = [62.2, 62.5, 63.4, 61.9]
SECOND = [62.9, 62.4, 64.0, 62.6]


def test_intervals_are_those_of_the_paired_t_test() -> None:
    found = paired_difference(FIRST, SECOND)
    test = stats.ttest_rel(SECOND, FIRST)
    for interval, level in ((found.interval, 0.95), (found.equivalence, 0.9)):
        wanted = test.confidence_interval(level)
        assert interval == pytest.approx((wanted.low, wanted.high))


def test_equivalence_is_two_one_sided_tests() -> None:
    """At 5 % each: the difference is significantly above -margin, and significantly below +margin."""
    found = paired_difference(FIRST, SECOND)
    for margin in (0.5, 0.8, 0.9, 1.0, 2.0):
        above = stats.ttest_rel([b + margin for b in SECOND], FIRST, alternative="greater").pvalue
        below = stats.ttest_rel([b - margin for b in SECOND], FIRST, alternative="less").pvalue
        assert found.within(margin) == (above < 0.05 and below < 0.05)


def test_one_pair_says_nothing() -> None:
    with pytest.raises(ValueError, match="two or more"):
        paired_difference([1.0], [2.0])


@pytest.mark.slow
def test_a_way_of_training_equals_itself(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = settings(faces, tmp_path / "unused", epochs="1")
    common = [word for key, value in small.items() if key != "out" for word in (f"--{key}", value)]
    arguments = ["--first", "--seed 7", "--second", "--seed 7", "--seeds", "0", "1", "--out", str(tmp_path / "runs")]
    main(["paired", *arguments, "--json", str(tmp_path / "found.json"), "--", "--preset", "rafdb", *common])
    assert "margin 1.5 points: equivalent" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["difference"]["mean"] == 0
    for number, accuracy in enumerate(found["accuracy"]["first"]):
        lines = (tmp_path / "runs" / f"first-seed{number}" / "metrics.jsonl").read_text().splitlines()
        epoch = next(record for record in map(json.loads, lines) if record["kind"] == "epoch")
        assert accuracy == 100 * epoch["validation"]["accuracy"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "0"], "two or more"),
        (["--seeds", "0", "1", "--", "--no.such.key", "1"], "unknown option --no.such.key"),
    ],
)
def test_mistakes_are_told_before_anything_starts(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["paired", "--first", "", "--second", "", "--out", str(tmp_path / "runs"), *arguments])
    assert left.value.code == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
