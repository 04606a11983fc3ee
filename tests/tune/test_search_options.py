"""Options of a search, its folder, and changes between starts."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from adadf_dist.errors import UserError
from tests.helpers.fake_trainer import OPTIONS, SPACE, base, begun, study_of
from tune.report.results import toml_of
from tune.search_options import plan
from tune.study.study import start


def test_changes_since_the_first_start_are_named(tmp_path: Path) -> None:
    first = begun(tmp_path, epochs=5)
    first = begun(tmp_path)  # no trial of the one before ever started
    first.trials.begin(first.default())
    with pytest.raises(UserError, match="already contains a search; pass --resume"):
        start(study_of(tmp_path, SPACE, OPTIONS), resume=False)
    with pytest.raises(UserError, match=r"base\.epochs was 6 and is now 7"):
        begun(tmp_path, epochs=7)
    wider = {**SPACE, "loss.lambda_min": {"uniform": [0.0, 0.6]}}
    with pytest.raises(UserError, match=r"lambda_min\.uniform was \[0\.0, 0\.5\] and is now \[0\.0, 0\.6\]"):
        start(study_of(tmp_path, wider, OPTIONS), resume=True)
    with pytest.raises(UserError, match=r"options\.trials was 6 and is now 5"):
        begun(tmp_path, replace(OPTIONS, trials=5))
    begun(tmp_path, replace(OPTIONS, trials=9, seeds=5, keep="all"), data__num_workers=7, runtime__timeout_s=99)
    with pytest.raises(UserError, match=r"study\.json: no such file; remove --resume"):
        start(study_of(tmp_path / "none", SPACE, OPTIONS), resume=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-trials", "-1"], "--num-trials -1: must be at least 0"),
        (["--num-seeds", "1"], "--num-seeds 1: must be at least 2"),
        (["--evaluation.protocol", "paper"], "evaluation.protocol=paper"),
        (["--searcher", "tpe", "--local"], "--searcher tpe"),
        (["--space", "papr"], "--space papr"),
        (["--grace-period", "3"], "--grace-period 3"),
        (["--loss.lamda_min", "0.1"], "unknown option --loss.lamda_min"),
    ],
)
def test_invalid_command_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(["--preset", "demo", *words])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        start(study_of(tmp_path / "file" / "study", SPACE, OPTIONS), resume=False)


def test_paths_are_absolute_for_every_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    study, _ = plan(["--preset", "demo", "--data.shards", "faces"])
    assert study.base.data.shards == str(tmp_path / "faces")
    assert study.base.data.cache_dir.startswith("~")
    study, _ = plan(["--preset", "demo", "--data.shards", "s3://bucket/faces", "--model.pretrained", "imagenet"])
    assert study.base.data.shards == "s3://bucket/faces" and study.base.model.pretrained == "imagenet"


def test_toml_round_trips_any_text() -> None:
    config = replace(base(), data=replace(base().data, shards='a "quoted" \\ path, ünïcode'))
    assert tomllib.loads("\n".join(toml_of(config)))["data"]["shards"] == config.data.shards


def test_seed_option_is_not_seeds() -> None:
    study, _ = plan(["--preset", "demo", "--seed", "7"])
    assert (study.base.seed, study.options.seeds) == (7, 3)


def test_grid_points_are_visited_once(tmp_path: Path) -> None:
    space = tmp_path / "space.toml"
    space.write_text('"optimizer.lr" = { grid = [1e-3, 1e-2, 1e-1] }')
    study, _ = plan(["--preset", "demo", "--space", str(space)])
    assert [trial.values.get("optimizer.lr") for trial in study.search_trials()] == [None, 1e-3, 1e-2, 1e-1]
    with pytest.raises(UserError, match=r"--num-trials 4: space .* has only 3 grid points"):
        plan(["--preset", "demo", "--space", str(space), "--num-trials", "4"])
    with pytest.raises(UserError, match=r"optimizer\.lr is a grid"):
        plan(["--preset", "demo", "--space", str(space), "--searcher", "tpe"])


def test_combinations_are_checked_before_any_trial(tmp_path: Path) -> None:
    """Each value is valid by itself, but crops larger than the image are not."""
    space = tmp_path / "space.toml"
    space.write_text('"data.image_size" = { grid = [64, 160] }\n"data.ten_crop_resize" = { grid = [0, 120] }')
    with pytest.raises(UserError, match=r"trial 4.*ten_crop"):
        plan(["--preset", "demo", "--space", str(space)])
