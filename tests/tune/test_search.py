"""A search from its first trial to its result: selection, robustness to noise, and resume."""

from __future__ import annotations

import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from scipy import stats

from adadf_dist.config.load import parse_cli
from adadf_dist.config.schema import Config
from adadf_dist.errors import DiskFullError, UserError
from tests.helpers.fake_trainer import (
    OPTIONS,
    SPACE,
    InProcessRunner,
    Stopped,
    base,
    begun,
    flat,
    planted,
    rows,
    study_of,
    train_by,
)
from tune.search import run_seeds, search
from tune.study.asha import AshaSchedule
from tune.study.study import SearchOptions, start
from tune.study.trial import DEFAULT


def test_known_optimum_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = train_by(monkeypatch, planted)
    study = begun(tmp_path, optimizer__lr=0.1)
    choice = search(study, InProcessRunner())
    assert choice.improved
    best = tomllib.loads((tmp_path / "best.toml").read_text())
    assert best["optimizer"]["lr"] == 1e-3
    config = parse_cli(["--config", str(tmp_path / "best.toml")])
    assert config.optimizer.lr == 1e-3 and config.epochs == 6 and config.evaluation.run_test
    winner = next(c for c in choice.candidates if c.number == choice.winner)
    assert config.loss.lambda_min == study.space.sample(0, winner.number)["loss.lambda_min"]
    # the default and six configurations on the search's seed, the default and two finalists on three other seeds
    assert Counter(trial["seed"] for trial in rows(study)) == {0: 7, 1: 3, 2: 3, 3: 3}
    assert len(trainer.epochs) == len(set(trainer.epochs)) == 16 * 6


def test_test_split_is_read_once_and_only_by_the_winner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = train_by(monkeypatch, planted)
    choice = search(begun(tmp_path, optimizer__lr=0.1), InProcessRunner())
    assert trainer.tested == [f"{choice.winner:04d}-seed1"]
    search(begun(tmp_path, optimizer__lr=0.1), InProcessRunner())
    assert len(trainer.tested) == 1


def test_noise_alone_selects_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    train_by(monkeypatch, flat)
    choice = search(begun(tmp_path), InProcessRunner())
    assert not choice.improved
    output = "too few seeds or samples to tell whether a configuration is better than the default"  # of three seeds
    assert output in capsys.readouterr().out
    best = (tmp_path / "best.toml").read_text()
    assert tomllib.loads(best)["loss"]["lambda_min"] == 0.2 and output in best


def test_seeds_of_one_configuration_are_all_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Nothing is selected, so every run is tested."""
    trainer = train_by(monkeypatch, flat)
    run_seeds(begun(tmp_path, SearchOptions(seeds=4)), InProcessRunner())
    accuracies = [flat(base(seed=seed), 6) for seed in range(1, 5)]
    interval = stats.t.interval(0.95, 3, np.mean(accuracies), stats.sem(accuracies))
    said = capsys.readouterr().out
    low, high = interval  # the fake trainer's split is so large that the interval is Student's
    output = f"{np.mean(accuracies):.2%} on 4 seeds (95% CI for new seeds and samples {low:.2%} to {high:.2%})"
    assert f"validation accuracy: {output}" in said and "test accuracy: 50.00% on 4 seeds" in said
    assert len(trainer.tested) == 4


def test_halving_stops_poor_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default, the baseline of all comparisons, and the finals run to the end."""
    trainer = train_by(monkeypatch, planted)
    study = begun(tmp_path, replace(OPTIONS, halving=AshaSchedule(2, 2, 6)), optimizer__lr=0.1)
    search(study, InProcessRunner())
    by_name = {row["trial"]: row for row in rows(study)}
    for number in range(1, 7):
        row = by_name[f"{number:04d}-seed0"]
        poor = row["optimizer.lr"] == 0.1
        assert not poor or row["status"] == "pruned", row
        assert row["status"] != "pruned" or row["epochs"] in (2, 4)
    assert all(by_name[f"0000-seed{seed}"]["epochs"] == 6 for seed in range(4))
    assert all(row["status"] == "finished" for row in rows(study) if row["stage"] == "final")
    assert len(trainer.epochs) < 16 * 6


@pytest.mark.parametrize(
    "after",
    [
        1,
        pytest.param(9, marks=pytest.mark.slow),
        47,
        pytest.param(40, marks=pytest.mark.slow),
        pytest.param(95, marks=pytest.mark.slow),
    ],
)
def test_stopped_search_resumes_to_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Wherever it was stopped: the same result, and no epoch twice."""
    whole = train_by(monkeypatch, planted)
    expected = search(begun(tmp_path / "whole", optimizer__lr=0.1), InProcessRunner())

    def until(config: Config, epoch: int) -> float:
        if len(trainer.epochs) == after:
            raise Stopped
        return planted(config, epoch)

    trainer = train_by(monkeypatch, until)
    with pytest.raises(Stopped):
        search(begun(tmp_path / "cut", optimizer__lr=0.1), InProcessRunner())
    later = train_by(monkeypatch, planted)
    assert search(begun(tmp_path / "cut", optimizer__lr=0.1), InProcessRunner()) == expected
    assert trainer.epochs + later.epochs == whole.epochs
    assert rows(study_of(tmp_path / "cut", SPACE, OPTIONS)) == rows(study_of(tmp_path / "whole", SPACE, OPTIONS))


def test_failed_trial_is_reported_and_retried_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(config: Config, epoch: int) -> float:
        if config.optimizer.lr == 0.1:
            raise UserError("the loss is not finite")
        return planted(config, epoch)

    train_by(monkeypatch, failing)
    study = begun(tmp_path)
    choice = search(study, InProcessRunner())
    assert all(row["error"] == "the loss is not finite" for row in rows(study) if row["optimizer.lr"] == 0.1)
    assert {c.number for c in choice.candidates} <= {0, 1, 3, 5}
    train_by(monkeypatch, planted)
    search(begun(tmp_path), InProcessRunner())
    assert all(row["status"] == "finished" for row in rows(study))


def test_failed_default_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(config: Config, epoch: int) -> float:
        raise UserError("no such shards")

    train_by(monkeypatch, failing)
    with pytest.raises(UserError, match="default configuration failed: no such shards"):
        search(begun(tmp_path), InProcessRunner())


def test_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_by(monkeypatch, planted)
    study = begun(tmp_path)

    def full(*words: object) -> None:
        raise DiskFullError(f"{tmp_path}: no room left")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tune.study.trial.write_json", full)
        with pytest.raises(UserError, match="no room left"):
            search(study, InProcessRunner())
    search(begun(tmp_path), InProcessRunner())


def test_unneeded_checkpoints_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_by(monkeypatch, planted)
    choice = search(begun(tmp_path / "winner", optimizer__lr=0.1), InProcessRunner())
    kept = {path.parent.name for path in (tmp_path / "winner" / "trials").glob("*/checkpoints")}
    assert kept == {f"{candidate.number:04d}-seed1" for candidate in choice.candidates}
    search(begun(tmp_path / "all", replace(OPTIONS, keep="all"), optimizer__lr=0.1), InProcessRunner())
    assert len(list((tmp_path / "all" / "trials").glob("*/checkpoints"))) == 16


def test_csv_and_parquet_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_by(monkeypatch, flat)
    study = begun(tmp_path)
    search(study, InProcessRunner())
    assert pyarrow.parquet.read_table(tmp_path / "trials.parquet").to_pylist() == [
        {**row, "error": row["error"] or ""} for row in rows(study)
    ]


def test_more_trials_extend_an_existing_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = train_by(monkeypatch, planted)
    search(begun(tmp_path, optimizer__lr=0.1), InProcessRunner())
    search(begun(tmp_path, replace(OPTIONS, trials=8), optimizer__lr=0.1), InProcessRunner())
    assert len(trainer.epochs) == len(set(trainer.epochs))
    assert {name for name, _ in trainer.epochs} >= {"0007-seed0", "0008-seed0"}


def test_finalists_differ_from_each_other_and_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From each other and from the default, whatever their numbers."""
    train_by(monkeypatch, planted)
    space: dict[str, object] = {"optimizer.lr": {"choice": [1e-3, 1e-2, 1e-1]}}
    study = start(study_of(tmp_path, space, replace(OPTIONS, trials=9, finalists=4), optimizer__lr=0.1), resume=False)
    choice = search(study, InProcessRunner())
    rates = [study.space.sample(0, c.number)["optimizer.lr"] for c in choice.candidates if c.number != DEFAULT]
    assert sorted(rates) == [1e-3, 1e-2]


def test_search_without_a_test_split_has_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    train_by(monkeypatch, planted)
    monkeypatch.setattr("tune.study.trial.read_test", lambda folder: {})
    assert search(begun(tmp_path, optimizer__lr=0.1), InProcessRunner()).improved
    assert "no test split" in capsys.readouterr().out
    assert (tmp_path / "best.toml").exists()


def test_extended_search_reports_earlier_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The second winner's run is tested from its checkpoint, not retrained, and the first one's test is not hidden."""
    trainer = train_by(monkeypatch, planted)
    first = search(begun(tmp_path, optimizer__lr=0.1), InProcessRunner())

    def another(config: Config, epoch: int) -> float:
        return planted(config, epoch) + (0.1 if config.seed > 3 and config.loss.lambda_min != lambda_of(first) else 0)

    def lambda_of(choice: Any) -> float:
        return float(study_of(tmp_path, SPACE, OPTIONS).space.sample(0, choice.winner)["loss.lambda_min"])

    trainer.curve = another
    second = search(begun(tmp_path, replace(OPTIONS, seeds=6), optimizer__lr=0.1), InProcessRunner())
    assert second.winner != first.winner and second.improved
    assert len(trainer.epochs) == len(set(trainer.epochs))
    assert f"the test split was already used by {first.winner:04d}-seed1" in capsys.readouterr().out


def test_list_is_a_single_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_by(monkeypatch, flat)
    space: dict[str, object] = {"augment.erase_scale": {"grid": [[0.02, 0.1], [0.02, 0.2]]}}
    study = start(study_of(tmp_path, space, replace(OPTIONS, trials=2)), resume=False)
    search(study, InProcessRunner())
    assert {row["augment.erase_scale"] for row in rows(study)} == {"[0.02, 0.25]", "[0.02, 0.1]", "[0.02, 0.2]"}
