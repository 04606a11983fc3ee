"""Whole runs from shards to result: stopped, killed and resumed, on one rank and on two."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml

from adadf_dist import train
from adadf_dist.checkpoint.storage import read_checkpoint
from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.engine.ddp import DDPEngine
from adadf_dist.errors import UserError
from adadf_dist.training.final_test import Result
from tests.helpers.forked import train_forked
from tests.helpers.runs import assert_same_run, command, finish, records, settings, start, status
from tests.helpers.waiting import communicate, wait_until


@pytest.fixture(scope="module")
def reference(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an uninterrupted run on one rank."""
    out = tmp_path_factory.mktemp("runs") / "reference"
    done = train_forked(settings(faces, out))
    assert done.returncode == 0, done.stderr
    return out


def wait_for_steps(out: Path, steps: int, timeout: float = 60) -> None:
    wait_until(lambda: len(records(out, "steps")) >= steps, "the run did not get that far", timeout)


def test_run_writes_its_documented_files(reference: Path) -> None:
    assert [record["epoch"] for record in records(reference, "epoch")] == [1, 2]
    assert [record["step"] for record in records(reference, "steps")] == list(range(1, 9))  # 64 / 16 batches, twice
    assert status(reference)["state"] == "finished"
    result = json.loads((reference / "result.json").read_text())
    assert result["test"]["samples"] == 30
    assert sum(map(sum, result["test"]["confusion"])) == 30
    assert {p.name for p in (reference / "history").iterdir()} == {"epoch-0001.npz", "epoch-0002.npz"}
    best = max(records(reference, "epoch"), key=lambda r: r["validation"]["accuracy"])  # type: ignore[index]
    assert result["selected_epoch"] == best["epoch"]


def test_written_config_starts_the_same_run(reference: Path, tmp_path: Path) -> None:
    values = yaml.safe_load((reference / "config.yaml").read_text())
    config = build_config([ConfigLayer("config.yaml", values), ConfigLayer("test", {"out": str(tmp_path / "again")})])
    assert config.runtime.precision in ("fp32", "bf16")  # the value that `auto` chose
    train.run(config)
    assert_same_run(tmp_path / "again", reference)


def test_finished_run_prints_its_result_again(reference: Path, faces: Path) -> None:
    before = (reference / "result.json").stat().st_mtime_ns
    again = train_forked(settings(faces, reference))
    assert again.returncode == 0
    assert "already finished" in again.stdout
    assert (reference / "result.json").stat().st_mtime_ns == before


def test_sigterm_stops_mid_epoch_and_the_same_command_resumes(reference: Path, faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    process = start(command(settings(faces, out)))
    wait_for_steps(out, 2)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = communicate(process)
    assert process.returncode == 0, stderr
    assert status(out)["state"] == "stopped"
    assert "Run the same command to resume." in stdout
    assert len(records(out, "steps")) < 8
    done = train_forked(settings(faces, out))
    assert done.returncode == 0, done.stderr
    assert_same_run(out, reference)


@pytest.mark.slow
def test_sigkill_at_random_times_gives_identical_run(reference: Path, faces: Path, tmp_path: Path) -> None:
    out, moments = tmp_path / "killed", random.Random(0)
    values = settings(faces, out, checkpoint__save_every_steps="1")
    for _ in range(2):
        process = start(command(values))
        wait_for_steps(out, len(records(out, "steps")) + 1)
        time.sleep(moments.uniform(0, 0.6))
        process.kill()
        communicate(process)
    done = train_forked(values)
    assert done.returncode == 0, done.stderr
    assert_same_run(out, reference)


@pytest.mark.parametrize("write", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_sigkill_during_a_checkpoint_write_gives_identical_run(
    write: int, reference: Path, faces: Path, tmp_path: Path
) -> None:
    """The process dies with half a checkpoint on disk: the first one, or the fifth (the end of epoch 1)."""
    out = tmp_path / "truncated"
    script = Path(__file__).parents[1] / "helpers" / "killed_in_write.py"
    values = settings(faces, out, checkpoint__save_every_steps="1")
    died = finish(command(values, script=[str(script), str(write)]))
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert list((out / "checkpoints").glob("*.partial"))
    done = train_forked(values)
    assert done.returncode == 0, done.stderr
    assert_same_run(out, reference)
    assert not list((out / "checkpoints").glob("*.partial"))


def test_truncated_checkpoint_is_skipped_with_a_warning(reference: Path, faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "damaged"
    train_forked(settings(faces, out, epochs="1", checkpoint__save_every_steps="3"))
    newest = sorted((out / "checkpoints").glob("checkpoint-*.pt"))[-1]
    with newest.open("r+b") as file:
        file.truncate(newest.stat().st_size // 2)
    (out / "result.json").unlink()
    done = train_forked(settings(faces, out, checkpoint__save_every_steps="3"))
    assert done.returncode == 0, done.stderr
    assert f"{newest.name}: truncated" in done.stderr
    assert_same_run(out, reference)


@pytest.mark.parametrize(("before", "after"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_run_resumes_on_another_number_of_ranks(
    before: int, after: int, reference: Path, faces: Path, tmp_path: Path
) -> None:
    out = tmp_path / "ranks"
    process = start(command(settings(faces, out), ranks=before))
    wait_for_steps(out, 5)
    process.send_signal(signal.SIGTERM)
    communicate(process, 90)
    assert status(out)["state"] == "stopped"
    done = train_forked(settings(faces, out), after, timeout=180)
    assert done.returncode == 0, done.stderr
    assert [r["epoch"] for r in records(out, "epoch")] == [1, 2]
    mine, theirs = records(out, "steps"), records(reference, "steps")
    assert [r["step"] for r in mine] == [r["step"] for r in theirs]
    # the first step starts from the same weights; later ones diverge by rounding
    assert mine[0]["total"] == pytest.approx(theirs[0]["total"], rel=1e-5)
    for step, (a, b) in enumerate(zip(mine, theirs, strict=True), start=1):
        assert a["total"] == pytest.approx(b["total"], rel=0.03), f"step {step}"


def test_two_ranks_train_and_agree_on_stopping(reference: Path, faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "two"
    done = train_forked(settings(faces, out), 2, timeout=180)
    assert done.returncode == 0, done.stderr
    assert status(out)["state"] == "finished"
    assert done.stdout.count("run folder:") == 2  # only rank 0 prints, at the start and at the end
    first = records(out, "steps")[0]
    assert first["total"] == pytest.approx(records(reference, "steps")[0]["total"], rel=1e-5)


def test_resume_with_a_changed_setting_is_rejected(reference: Path, faces: Path) -> None:
    done = train_forked(settings(faces, reference, loss__lambda_min="0.3"))
    assert done.returncode == 2
    assert "loss.lambda_min" in done.stderr
    assert "--loss.lambda_min 0.2" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_resume_never_rejects_a_run_folder_in_use(reference: Path, faces: Path) -> None:
    done = train_forked(settings(faces, reference, resume="never"))
    assert done.returncode == 2
    assert "already contains a run" in done.stderr


def test_nonfinite_loss_names_its_step(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, calls, real = tmp_path / "nan", [], train.adadf_loss

    def poisoned(*args: object) -> object:
        calls.append(1)
        losses = real(*args)  # type: ignore[arg-type]
        return losses._replace(total=losses.total * float("nan")) if len(calls) == 6 else losses

    monkeypatch.setattr(train, "adadf_loss", poisoned)
    config = build_config([ConfigLayer("test", settings(faces, out, runtime__log_every_steps="4"))])
    with pytest.raises(UserError, match=r"step 6 \(epoch 2\): non-finite loss"):
        train.run(config)
    kept = sorted((out / "checkpoints").glob("checkpoint-*.pt"))
    assert [p.name for p in kept] == ["checkpoint-0001-000000.pt"]
    weights = read_checkpoint(kept[0])["engine"]["model"]
    assert all(torch.isfinite(v).all() for v in weights.values())


def test_on_epoch_and_the_published_protocol(faces: Path, tmp_path: Path) -> None:
    seen: list[object] = []
    values = settings(
        faces, tmp_path / "published", evaluation__protocol="paper", class_distributions__source="second_pass"
    )
    result = train.run(
        build_config([ConfigLayer("test", values)]), on_epoch=lambda record: seen.append(record["epoch"])
    )
    assert seen == [1, 2]
    assert isinstance(result, Result)
    tested = {r["epoch"]: r["test_accuracy"] for r in records(tmp_path / "published", "epoch")}
    assert result.best_on_test["accuracy"] == max(tested.values())  # type: ignore[type-var]


@pytest.mark.parametrize("supervision", ["label", "class", "one_hot", "votes"])
def test_ablations_train(supervision: str, faces: Path, tmp_path: Path) -> None:
    values = settings(faces, tmp_path / supervision, loss__supervision=supervision, epochs="1")
    result = train.run(build_config([ConfigLayer("test", values)]))
    assert isinstance(result, Result)
    assert result.test["samples"] == 30


def test_sigkill_between_checkpoint_and_selection_keeps_the_best(reference: Path, faces: Path, tmp_path: Path) -> None:
    """The selected checkpoint is the best epoch's even if the run died before recording it."""
    out = tmp_path / "out"
    shutil.copytree(reference, out)
    (out / "result.json").unlink()
    best = json.loads((reference / "result.json").read_text())["selected_epoch"]
    other = next(p for p in (out / "checkpoints").glob("checkpoint-*") if f"-{best:04d}-" not in p.name)
    (out / "checkpoints" / "selected.pt").unlink()
    newest = sorted((out / "checkpoints").glob("checkpoint-*"))[-1]
    if f"-{best:04d}-" in newest.name:  # after the kill: the new checkpoint, and the old selection
        os.link(other, out / "checkpoints" / "selected.pt")
        assert isinstance(train.run(build_config([ConfigLayer("test", settings(faces, out))])), Result)
        assert read_checkpoint(out / "checkpoints" / "selected.pt")["progress"]["epoch"] == best
        assert (
            json.loads((out / "result.json").read_text())["test"]
            == json.loads((reference / "result.json").read_text())["test"]
        )
    else:  # the best epoch's checkpoint is missing: reported, not replaced
        with pytest.raises(UserError, match=r"selected\.pt"):
            train.run(build_config([ConfigLayer("test", settings(faces, out))]))


def test_run_resumes_in_another_folder(reference: Path, faces: Path, tmp_path: Path) -> None:
    newest = sorted((reference / "checkpoints").glob("checkpoint-*"))[-1]
    values = settings(faces, tmp_path / "new", resume=str(newest), epochs="3")
    result = train.run(build_config([ConfigLayer("test", values)]))
    assert isinstance(result, Result)
    assert result.test["samples"] == 30
    assert read_checkpoint(tmp_path / "new" / "checkpoints" / "selected.pt")["progress"]["epoch"] == (
        result.selected_epoch
    )


def test_failed_run_reports_its_status(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("evaluation broke")

    monkeypatch.setattr(train, "evaluate", broken)
    with pytest.raises(RuntimeError, match="evaluation broke"):
        train.run(build_config([ConfigLayer("test", settings(faces, tmp_path / "out"))]))
    assert status(tmp_path / "out")["state"] == "failed"
    assert status(tmp_path / "out")["error"] == "evaluation broke"


def test_nonfinite_weights_after_a_step_are_not_saved(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the last step is finite, but its update is not."""
    real = DDPEngine.step
    steps: list[int] = []

    def spoil(self: DDPEngine, loss: torch.Tensor) -> None:
        real(self, loss)
        steps.append(1)
        if len(steps) == 4:
            next(self.model.parameters()).data[0] = float("nan")

    monkeypatch.setattr(DDPEngine, "step", spoil)
    with pytest.raises(UserError, match=r"non-finite values in parameter extractor"):
        train.run(build_config([ConfigLayer("test", settings(faces, tmp_path / "out"))]))
    assert not list((tmp_path / "out" / "checkpoints").glob("*.pt"))


def test_resume_with_changed_epochs_under_cosine_is_rejected(faces: Path, tmp_path: Path) -> None:
    values = settings(faces, tmp_path / "out", optimizer__schedule="cosine", epochs="1")
    train.run(build_config([ConfigLayer("test", values)]))
    with pytest.raises(UserError, match="epochs was 1 in the checkpoint"):
        train.run(build_config([ConfigLayer("test", {**values, "epochs": 2})]))


def test_weight_average_over_two_ranks(faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "ema"
    done = train_forked(settings(faces, out, optimizer__ema_decay="0.9", epochs="1"), 2, timeout=180)
    assert done.returncode == 0, done.stderr
    state = read_checkpoint(next((out / "checkpoints").glob("checkpoint-*")))["engine"]
    assert state["average"].keys() == state["model"].keys()
    assert not torch.equal(state["average"]["extractor.conv1.weight"], state["model"]["extractor.conv1.weight"])
