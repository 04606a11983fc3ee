"""A single trial: its folder, its ranks, and its files when it dies."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adadf_dist.config.schema import Config
from adadf_dist.distributed.world import World
from adadf_dist.errors import LostRankError, UserError
from tests.helpers.fake_trainer import OPTIONS, SPACE, InProcessRunner, Stopped, begun, planted, study_of, train_by
from tests.helpers.ranks import run_ranks
from tune.runners.execute import config_of, run_trial
from tune.search import search
from tune.study.asha import AshaSchedule
from tune.study.trial import Trial


def crash(study: object, trial: object, reached: tuple[int, float]) -> bool:
    if reached[0] == 2:
        raise Stopped
    return False


def test_trial_that_dies_before_its_decision_is_decided_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the checkpoint of a rung's epoch and the decision."""
    options = replace(OPTIONS, halving=AshaSchedule(2, 2, 6))
    study = begun(tmp_path, options)
    train_by(monkeypatch, planted)
    run_trial(study, study.default())
    poor = Trial(9, 0, "search", {"optimizer.lr": 0.1})
    trainer = train_by(monkeypatch, planted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tune.runners.execute.should_prune", crash)
        with pytest.raises(Stopped):
            run_trial(study, poor)
    assert trainer.epochs[-1] == ("0009-seed0", 2)
    assert run_trial(study, poor).status == "pruned"
    assert trainer.epochs[-1] == ("0009-seed0", 2)


def test_trial_does_not_replace_another(tmp_path: Path) -> None:
    study = begun(tmp_path)
    study.trials.begin(Trial(1, 0, "search", {"optimizer.lr": 0.1}))
    with pytest.raises(UserError, match="contains a trial with values"):
        study.trials.begin(Trial(1, 0, "search", {"optimizer.lr": 0.2}))


def of_two_ranks(world: World, folder: str, kind: str) -> tuple[str, str, list[int]]:
    """What a rank receives as the trial's end, and the epochs that it reported."""
    study = study_of(Path(folder), SPACE, replace(OPTIONS, halving=AshaSchedule(2, 2, 6)))
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

    values = {"optimizer.lr": 0.1} if kind == "pruned" else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tune.runners.execute.run", train)
        try:
            outcome = run_trial(study, Trial(9, 0, "search", values), lambda record: reported.append(record["epoch"]))
        except UserError as problem:
            return "raised", str(problem), reported
    return outcome.status, outcome.error, reported


@pytest.mark.parametrize("kind", ["finished", "pruned", "failed"])
def test_ranks_agree_on_the_end_of_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Every rank reports every epoch, and receives the end that rank 0 recorded."""
    study = begun(tmp_path, replace(OPTIONS, halving=AshaSchedule(2, 2, 6)))
    train_by(monkeypatch, planted)
    run_trial(study, study.default())
    one, two = run_ranks(of_two_ranks, 2, str(tmp_path), kind)
    epochs = {"finished": [1, 2, 3, 4, 5, 6], "pruned": [1, 2], "failed": [1, 2]}[kind]
    assert one == (kind, "the loss is not finite" if kind == "failed" else "", epochs)
    assert two == (one if kind != "failed" else ("raised", "the loss is not finite", epochs))
    assert study.trials.get("0009-seed0").status == kind


def test_shorter_trials_are_covered() -> None:
    trial = Trial(1, 2, "final", {"loss.lambda_min": 0.1})
    tested = replace(trial, test=True)
    assert tested.satisfies(trial) and trial.satisfies(trial) and not trial.satisfies(tested)
    assert not tested.satisfies(replace(trial, values={"loss.lambda_min": 0.2}))


def test_truncated_trial_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = begun(tmp_path)
    study.trials.begin(study.default())
    (tmp_path / "trials" / "0000-seed0" / "trial.json").write_text(json.dumps({})[:1])
    with pytest.raises(UserError, match=r"trial\.json: parse error"):
        study.trials.outcomes()


def test_lost_rank_is_not_a_failure_of_the_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def losing(config: Config, epoch: int) -> float:
        raise LostRankError("lost contact with another rank")

    train_by(monkeypatch, losing)
    study = begun(tmp_path)
    with pytest.raises(LostRankError):
        search(study, InProcessRunner())
    assert study.trials.result(study.default()).status == ""


def test_trial_writes_no_report(tmp_path: Path) -> None:
    """The search has its own page, and drawing takes seconds per trial."""
    base = Config()
    assert base.evaluation.write_report
    assert not config_of(base, Trial(1, 0, "search", {"optimizer.lr": 0.1}), tmp_path).evaluation.write_report
