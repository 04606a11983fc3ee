"""A search from its first trial to its answer: what is chosen, what noise may not choose, what is gone on with."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from ray.tune.schedulers.async_hyperband import _Bracket
from scipy import stats

from adadf_dist.config import Config
from adadf_dist.errors import DiskFullError, LostRankError, UserError
from adadf_dist.settings import config_from_command_line
from adadf_dist.world import World
from tests.ranks import run_ranks
from tests.stand_in import Here, base, noise, study_of, train_by
from tune.choice import choose
from tune.halving import Halving
from tune.results import toml_of
from tune.running import run_trial
from tune.search import plan, repeat, search
from tune.study import STUDY_FILE, Options, Study, begin
from tune.trial import DEFAULT, Trial

SPACE: dict[str, object] = {"optimizer.lr": {"grid": [1e-3, 1e-1]}, "loss.lambda_min": {"uniform": [0.0, 0.5]}}
OPTIONS = Options(seeds=3, trials=6, finalists=2)


def planted(config: Config, epoch: int) -> float:
    """A learning rate of 0.001 is worth 20 points, all else is noise."""
    good = 0.7 if config.optimizer.lr == 1e-3 else 0.5
    return good + 0.01 * epoch + 0.005 * noise(config)


def flat(config: Config, epoch: int) -> float:
    """Nothing matters."""
    return 0.6 + 0.02 * noise(config)


def begun(folder: Path, options: Options = OPTIONS, **changed: object) -> Study:
    return begin(study_of(folder, SPACE, options, **changed), resume=(folder / STUDY_FILE).exists())


def rows(study: Study) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pyarrow.csv.read_csv(study.folder / "trials.csv").to_pylist()
    return found


def test_a_planted_optimum_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = train_by(monkeypatch, planted)
    study = begun(tmp_path, optimizer__lr=0.1)
    choice = search(study, Here())
    assert choice.found
    best = tomllib.loads((tmp_path / "best.toml").read_text())
    assert best["optimizer"]["lr"] == 1e-3
    config = config_from_command_line(["--config", str(tmp_path / "best.toml")])
    assert config.optimizer.lr == 1e-3 and config.epochs == 6 and config.evaluation.test
    winner = next(c for c in choice.candidates if c.number == choice.winner)
    assert config.loss.lambda_min == study.space.sample(0, winner.number)["loss.lambda_min"]
    # the default and six of the search on its seed, the default and two finalists on three others
    assert Counter(trial["seed"] for trial in rows(study)) == {0: 7, 1: 3, 2: 3, 3: 3}
    assert len(trainer.epochs) == len(set(trainer.epochs)) == 16 * 6


def test_the_test_split_is_read_by_the_winner_alone_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = train_by(monkeypatch, planted)
    choice = search(begun(tmp_path, optimizer__lr=0.1), Here())
    assert trainer.tested == [f"{choice.winner:04d}-seed1"]
    search(begun(tmp_path, optimizer__lr=0.1), Here())
    assert len(trainer.tested) == 1


def test_noise_alone_chooses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    train_by(monkeypatch, flat)
    choice = search(begun(tmp_path), Here())
    assert not choice.found
    assert "no configuration is better than the default beyond noise" in capsys.readouterr().out
    best = (tmp_path / "best.toml").read_text()
    assert tomllib.loads(best)["loss"]["lambda_min"] == 0.2 and "no configuration is better" in best


def test_seeds_of_one_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Nothing is chosen, so every run is tested."""
    trainer = train_by(monkeypatch, flat)
    repeat(begun(tmp_path, Options(seeds=4)), Here())
    accuracies = [flat(base(seed=seed), 6) for seed in range(1, 5)]
    interval = stats.t.interval(0.95, 3, np.mean(accuracies), stats.sem(accuracies))
    said = capsys.readouterr().out
    told = f"{np.mean(accuracies):.2%} on 4 seeds (95 % interval {interval[0]:.2%} to {interval[1]:.2%})"
    assert f"validation accuracy: {told}" in said and "test accuracy: 50.00% on 4 seeds" in said
    assert len(trainer.tested) == 4


def test_noise_wins_in_one_search_of_twenty() -> None:
    """Of searches in which all configurations are alike, at most 5 % find one that is better than the default."""
    generator = np.random.default_rng(0)
    found = sum(choose({n: generator.normal(0.6, 0.01, 5) for n in range(4)}).found for _ in range(2000))
    assert found / 2000 < 0.05
    alone = sum(choose({n: generator.normal(0.6, 0.01, 5) for n in range(2)}).found for _ in range(2000))
    assert 0.01 < alone / 2000 < 0.04  # one side of a 95 % interval


def test_differences_are_those_of_a_paired_t_test() -> None:
    generator = np.random.default_rng(1)
    default, other = generator.normal(0.6, 0.02, 6), generator.normal(0.62, 0.02, 6)
    candidate = next(c for c in choose({DEFAULT: default, 1: other}).candidates if c.number == 1)
    paired = stats.ttest_rel(other, default).confidence_interval(0.95)
    assert candidate.difference is not None
    np.testing.assert_allclose(candidate.difference.interval, (paired.low, paired.high))
    single = stats.ttest_1samp(other, 0.0).confidence_interval(0.95)
    np.testing.assert_allclose(candidate.interval, (single.low, single.high))
    three = next(c for c in choose({DEFAULT: default, 1: other, 2: other, 3: other}).candidates if c.number == 1)
    paired = stats.ttest_rel(other, default).confidence_interval(1 - 0.05 / 3)
    assert three.difference is not None
    np.testing.assert_allclose(three.difference.interval, (paired.low, paired.high))


def test_halving_decides_as_rays_own_scheduler() -> None:
    """Accuracies that come to a rung in turn, each trial to the next rung as long as it passes."""
    generator = np.random.default_rng(2)
    for factor in (2, 3, 4):
        halving = Halving(grace=2, factor=factor, epochs=200)
        bracket = _Bracket(2, 199, factor, 0)
        reached: dict[int, list[float]] = {rung: [] for rung in halving.rungs}
        ended = 0
        for number in range(60):
            trial: Any = type("Trial", (), {"trial_id": str(number)})()
            for rung in halving.rungs:
                accuracy = float(generator.normal())
                passes = halving.passes(accuracy, reached[rung])
                reached[rung].append(accuracy)
                assert (bracket.on_result(trial, rung, accuracy) == "CONTINUE") == passes
                if not passes:
                    ended += 1
                    break
        assert ended > 20


def test_halving_ends_what_is_poor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default, which all is measured by, and finals go to the end."""
    trainer = train_by(monkeypatch, planted)
    study = begun(tmp_path, replace(OPTIONS, halving=Halving(2, 2, 6)), optimizer__lr=0.1)
    search(study, Here())
    by_name = {row["trial"]: row for row in rows(study)}
    for number in range(1, 7):
        row = by_name[f"{number:04d}-seed0"]
        poor = row["optimizer.lr"] == 0.1
        assert not poor or row["end"] == "halted", row
        assert row["end"] != "halted" or row["epochs"] in (2, 4)
    assert all(by_name[f"0000-seed{seed}"]["epochs"] == 6 for seed in range(4))
    assert all(row["end"] == "finished" for row in rows(study) if row["stage"] == "final")
    assert len(trainer.epochs) < 16 * 6


class Stopped(Exception):  # noqa: N818 - stands for a signal
    """The machine is gone."""


@pytest.mark.parametrize("after", [1, 9, 40, 47, 95])
def test_a_stopped_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Wherever it was stopped: the same answer, and no epoch twice."""
    whole = train_by(monkeypatch, planted)
    expected = search(begun(tmp_path / "whole", optimizer__lr=0.1), Here())

    def until(config: Config, epoch: int) -> float:
        if len(trainer.epochs) == after:
            raise Stopped
        return planted(config, epoch)

    trainer = train_by(monkeypatch, until)
    with pytest.raises(Stopped):
        search(begun(tmp_path / "cut", optimizer__lr=0.1), Here())
    later = train_by(monkeypatch, planted)
    assert search(begun(tmp_path / "cut", optimizer__lr=0.1), Here()) == expected
    assert trainer.epochs + later.epochs == whole.epochs
    assert rows(study_of(tmp_path / "cut", SPACE, OPTIONS)) == rows(study_of(tmp_path / "whole", SPACE, OPTIONS))


def test_a_failed_trial_is_told_and_tried_again_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(config: Config, epoch: int) -> float:
        if config.optimizer.lr == 0.1:
            raise UserError("the loss is not finite")
        return planted(config, epoch)

    train_by(monkeypatch, failing)
    study = begun(tmp_path)
    choice = search(study, Here())
    assert all(row["error"] == "the loss is not finite" for row in rows(study) if row["optimizer.lr"] == 0.1)
    assert {c.number for c in choice.candidates} <= {0, 1, 3, 5}
    train_by(monkeypatch, planted)
    search(begun(tmp_path), Here())
    assert all(row["end"] == "finished" for row in rows(study))


def test_a_lost_rank_is_no_failure_of_the_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def losing(config: Config, epoch: int) -> float:
        raise LostRankError("lost contact with another rank")

    train_by(monkeypatch, losing)
    study = begun(tmp_path)
    with pytest.raises(LostRankError):
        search(study, Here())
    assert study.trials.outcome(study.default()).end == ""


def test_a_failed_default_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(config: Config, epoch: int) -> float:
        raise UserError("no such shards")

    train_by(monkeypatch, failing)
    with pytest.raises(UserError, match="default configuration failed: no such shards"):
        search(begun(tmp_path), Here())


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_by(monkeypatch, planted)
    study = begun(tmp_path)

    def full(*words: object) -> None:
        raise DiskFullError(f"{tmp_path}: no room left")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tune.trial.write_json", full)
        with pytest.raises(UserError, match="no room left"):
            search(study, Here())
    search(begun(tmp_path), Here())


def test_checkpoints_go_when_they_serve_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_by(monkeypatch, planted)
    choice = search(begun(tmp_path / "winner", optimizer__lr=0.1), Here())
    kept = {path.parent.name for path in (tmp_path / "winner" / "trials").glob("*/checkpoints")}
    assert kept == {f"{candidate.number:04d}-seed1" for candidate in choice.candidates}
    search(begun(tmp_path / "all", replace(OPTIONS, keep="all"), optimizer__lr=0.1), Here())
    assert len(list((tmp_path / "all" / "trials").glob("*/checkpoints"))) == 16


def test_csv_and_parquet_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_by(monkeypatch, flat)
    study = begun(tmp_path)
    search(study, Here())
    assert pyarrow.parquet.read_table(tmp_path / "trials.parquet").to_pylist() == [
        {**row, "error": row["error"] or ""} for row in rows(study)
    ]


def test_what_changed_since_is_named(tmp_path: Path) -> None:
    first = begun(tmp_path, epochs=5)
    first = begun(tmp_path)  # of the one before no trial ever began
    first.trials.begin(first.default())
    with pytest.raises(UserError, match="holds a search; go on with it by --resume"):
        begin(study_of(tmp_path, SPACE, OPTIONS), resume=False)
    with pytest.raises(UserError, match=r"base\.epochs was 6 and is now 7"):
        begun(tmp_path, epochs=7)
    wider = {**SPACE, "loss.lambda_min": {"uniform": [0.0, 0.6]}}
    with pytest.raises(UserError, match=r"lambda_min\.uniform was \[0\.0, 0\.5\] and is now \[0\.0, 0\.6\]"):
        begin(study_of(tmp_path, wider, OPTIONS), resume=True)
    with pytest.raises(UserError, match=r"options\.trials was 6 and is now 5"):
        begun(tmp_path, replace(OPTIONS, trials=5))
    begun(tmp_path, replace(OPTIONS, trials=9, seeds=5, keep="all"), data__workers=7, runtime__timeout_s=99)
    with pytest.raises(UserError, match=r"study\.json: no such file; leave --resume out"):
        begin(study_of(tmp_path / "none", SPACE, OPTIONS), resume=True)


def test_more_trials_go_on_from_those_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = train_by(monkeypatch, planted)
    search(begun(tmp_path, optimizer__lr=0.1), Here())
    search(begun(tmp_path, replace(OPTIONS, trials=8), optimizer__lr=0.1), Here())
    assert len(trainer.epochs) == len(set(trainer.epochs))
    assert {name for name, _ in trainer.epochs} >= {"0007-seed0", "0008-seed0"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trials", "-1"], "--trials -1: give 0 or more"),
        (["--seeds", "1"], "--seeds 1: give 2 or more"),
        (["--evaluation.protocol", "published"], "evaluation.protocol is published"),
        (["--searcher", "tpe", "--local"], "--searcher tpe"),
        (["--space", "papr"], "--space papr"),
        (["--grace", "3"], "--grace 3"),
        (["--loss.lamda_min", "0.1"], "unknown option --loss.lamda_min"),
    ],
)
def test_a_wrong_command_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(["--preset", "demo", *words])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        begin(study_of(tmp_path / "file" / "study", SPACE, OPTIONS), resume=False)


def test_paths_hold_on_every_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    study, _ = plan(["--preset", "demo", "--data.shards", "faces"])
    assert study.base.data.shards == str(tmp_path / "faces")
    assert study.base.data.cache.startswith("~")
    study, _ = plan(["--preset", "demo", "--data.shards", "s3://bucket/faces", "--model.pretrained", "imagenet"])
    assert study.base.data.shards == "s3://bucket/faces" and study.base.model.pretrained == "imagenet"


def test_toml_holds_any_text() -> None:
    config = replace(base(), data=replace(base().data, shards='a "quoted" \\ path, ünïcode'))
    assert tomllib.loads("\n".join(toml_of(config)))["data"]["shards"] == config.data.shards


def test_trials_that_do_less_are_covered() -> None:
    trial = Trial(1, 2, "final", {"loss.lambda_min": 0.1})
    tested = replace(trial, test=True)
    assert tested.covers(trial) and trial.covers(trial) and not trial.covers(tested)
    assert not tested.covers(replace(trial, values={"loss.lambda_min": 0.2}))


def test_a_torn_trial_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = begun(tmp_path)
    study.trials.begin(study.default())
    (tmp_path / "trials" / "0000-seed0" / "trial.json").write_text(json.dumps({})[:1])
    with pytest.raises(UserError, match=r"trial\.json: does not parse"):
        study.trials.outcomes()


def test_seed_is_the_runs_and_not_seeds() -> None:
    study, _ = plan(["--preset", "demo", "--seed", "7"])
    assert (study.base.seed, study.options.seeds) == (7, 3)


def test_grids_are_gone_through_once(tmp_path: Path) -> None:
    space = tmp_path / "space.toml"
    space.write_text('"optimizer.lr" = { grid = [1e-3, 1e-2, 1e-1] }')
    study, _ = plan(["--preset", "demo", "--space", str(space)])
    assert [trial.values.get("optimizer.lr") for trial in study.searched()] == [None, 1e-3, 1e-2, 1e-1]
    with pytest.raises(UserError, match=r"--trials 4: the grids .* have 3 points"):
        plan(["--preset", "demo", "--space", str(space), "--trials", "4"])
    with pytest.raises(UserError, match=r"optimizer\.lr is a grid"):
        plan(["--preset", "demo", "--space", str(space), "--searcher", "tpe"])


def test_combinations_are_checked_before_any_trial(tmp_path: Path) -> None:
    """Each value by itself is right; crops larger than the picture are not."""
    space = tmp_path / "space.toml"
    space.write_text('"data.image_size" = { grid = [64, 160] }\n"data.ten_crop" = { grid = [0, 120] }')
    with pytest.raises(UserError, match=r"trial 4.*ten_crop"):
        plan(["--preset", "demo", "--space", str(space)])


def test_finalists_are_different(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From each other and from the default, whatever their numbers."""
    train_by(monkeypatch, planted)
    space: dict[str, object] = {"optimizer.lr": {"choice": [1e-3, 1e-2, 1e-1]}}
    study = begin(study_of(tmp_path, space, replace(OPTIONS, trials=9, finalists=4), optimizer__lr=0.1), resume=False)
    choice = search(study, Here())
    rates = [study.space.sample(0, c.number)["optimizer.lr"] for c in choice.candidates if c.number != DEFAULT]
    assert sorted(rates) == [1e-3, 1e-2]


def test_a_dataset_without_a_test_split_has_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    train_by(monkeypatch, planted)
    monkeypatch.setattr("tune.trial.read_test", lambda folder: None)
    assert search(begun(tmp_path, optimizer__lr=0.1), Here()).found
    assert "no test split" in capsys.readouterr().out
    assert (tmp_path / "best.toml").exists()


def test_a_trial_that_dies_before_it_is_judged_is_judged_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the checkpoint of a rung's epoch and the decision."""
    options = replace(OPTIONS, halving=Halving(2, 2, 6))
    study = begun(tmp_path, options)
    train_by(monkeypatch, planted)
    run_trial(study, study.default())
    poor = Trial(9, 0, "search", {"optimizer.lr": 0.1})
    trainer = train_by(monkeypatch, planted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tune.running.halts", crash)
        with pytest.raises(Stopped):
            run_trial(study, poor)
    assert trainer.epochs[-1] == ("0009-seed0", 2)
    assert run_trial(study, poor).end == "halted"
    assert trainer.epochs[-1] == ("0009-seed0", 2)


def crash(study: object, trial: object, reached: tuple[int, float]) -> bool:
    if reached[0] == 2:
        raise Stopped
    return False


def test_a_trial_is_not_put_in_the_place_of_another(tmp_path: Path) -> None:
    study = begun(tmp_path)
    study.trials.begin(Trial(1, 0, "search", {"optimizer.lr": 0.1}))
    with pytest.raises(UserError, match="holds a trial of"):
        study.trials.begin(Trial(1, 0, "search", {"optimizer.lr": 0.2}))


def test_a_search_that_grows_says_what_test_has_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The second winner's run is tested from its checkpoint, not trained again, and the first's test is not hidden."""
    trainer = train_by(monkeypatch, planted)
    first = search(begun(tmp_path, optimizer__lr=0.1), Here())

    def another(config: Config, epoch: int) -> float:
        return planted(config, epoch) + (0.1 if config.seed > 3 and config.loss.lambda_min != lambda_of(first) else 0)

    def lambda_of(choice: Any) -> float:
        return float(study_of(tmp_path, SPACE, OPTIONS).space.sample(0, choice.winner)["loss.lambda_min"])

    trainer.curve = another
    second = search(begun(tmp_path, replace(OPTIONS, seeds=6), optimizer__lr=0.1), Here())
    assert second.winner != first.winner and second.found
    assert len(trainer.epochs) == len(set(trainer.epochs))
    assert f"has been read before, by {first.winner:04d}-seed1" in capsys.readouterr().out


def test_a_list_is_a_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_by(monkeypatch, flat)
    space: dict[str, object] = {"augment.erase_scale": {"grid": [[0.02, 0.1], [0.02, 0.2]]}}
    study = begin(study_of(tmp_path, space, replace(OPTIONS, trials=2)), resume=False)
    search(study, Here())
    assert {row["augment.erase_scale"] for row in rows(study)} == {"[0.02, 0.25]", "[0.02, 0.1]", "[0.02, 0.2]"}


def of_two_ranks(world: World, folder: str, kind: str) -> tuple[str, str, list[int]]:
    """What a rank is told of a trial's end, and the epochs that it reported."""
    study = study_of(Path(folder), SPACE, replace(OPTIONS, halving=Halving(2, 2, 6)))
    reported: list[int] = []

    def curve(config: Config, epoch: int) -> float:
        if kind == "failed" and epoch == 3:
            raise UserError("the loss is not finite")
        return planted(config, epoch)

    def train(config: Config, on_epoch: Any) -> Any:
        out = Path(config.out)
        for epoch in range(1, 7):
            record = {"kind": "epoch", "epoch": epoch, "validation": {"accuracy": curve(config, epoch)}}
            if world.is_main:
                with (out / "metrics.jsonl").open("a") as stream:
                    stream.write(json.dumps(record) + "\n")
            world.barrier()
            on_epoch(record)
        return object()

    values = {"optimizer.lr": 0.1} if kind == "halted" else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tune.running.run", train)
        try:
            outcome = run_trial(study, Trial(9, 0, "search", values), lambda record: reported.append(record["epoch"]))
        except UserError as problem:
            return "raised", str(problem), reported
    return outcome.end, outcome.error, reported


@pytest.mark.parametrize("kind", ["finished", "halted", "failed"])
def test_ranks_agree_on_a_trials_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Every rank reports every epoch, and knows the end that rank 0 wrote down."""
    study = begun(tmp_path, replace(OPTIONS, halving=Halving(2, 2, 6)))
    train_by(monkeypatch, planted)
    run_trial(study, study.default())
    one, two = run_ranks(of_two_ranks, 2, str(tmp_path), kind)
    epochs = {"finished": [1, 2, 3, 4, 5, 6], "halted": [1, 2], "failed": [1, 2]}[kind]
    assert one == (kind, "the loss is not finite" if kind == "failed" else "", epochs)
    assert two == (one if kind != "failed" else ("raised", "the loss is not finite", epochs))
    assert study.trials.named("0009-seed0").end == kind
