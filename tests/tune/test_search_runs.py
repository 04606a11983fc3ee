"""Searches that train, with and without Ray: complete, killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import sys
import tomllib
from pathlib import Path
from typing import Any

import psutil
import pyarrow.csv
import pytest

from adadf_dist.data.build.builder import BuildOptions, build_dataset
from adadf_dist.data.synthetic.dataset import make_synthetic_source
from tests.helpers.runs import SMALL, finish, records, start
from tests.helpers.waiting import communicate, wait_until

SPACE = '"loss.lambda_min" = { uniform = [0.0, 0.5] }\n'
SIZE = ("--num-trials", "2", "--num-seeds", "2", "--finalists", "1", "--scheduler", "none")
BROKEN = 1e-12
"""A learning rate that learns nothing."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tune") / "faces"
    source = make_synthetic_source({"train": 64, "validation": 32, "test": 32}, 32, 0)
    build_dataset(source, out, BuildOptions(name="drawn", seed=0, samples_per_shard=32))
    return out


def command(out: Path, space: Path, *words: str, **changed: str) -> list[str]:
    values = {
        **SMALL,
        "epochs": "3",
        "loss.epoch_threshold": "1",
        **{k.replace("__", "."): v for k, v in changed.items()},
    }
    keys = [word for key, value in values.items() for word in (f"--{key}", value)]
    own = ["--preset", "demo", "--out", str(out), "--space", str(space), *words]
    return [sys.executable, "-m", "tune.search", *own, *keys]


def space_in(folder: Path, content: str) -> Path:
    path = folder / "space.toml"
    path.write_text(content)
    return path


def rows(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pyarrow.csv.read_csv(out / "trials.csv").to_pylist()
    return found


def each_epoch_once(out: Path) -> None:
    for row in rows(out):
        epochs = [record["epoch"] for record in records(out / row["folder"], "epoch")]
        assert epochs == list(range(1, row["epochs"] + 1)), row


def test_seeds_of_one_configuration_run_on_ray(tiny: Path, tmp_path: Path) -> None:
    """Two trials of one epoch: each finishes and is tested, and both sources of noise are in the interval."""
    space = space_in(tmp_path, SPACE)
    done = finish(
        command(
            tmp_path / "search", space, "--num-trials", "0", "--num-seeds", "2", data__shards=str(tiny), epochs="1"
        ),
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "test accuracy: " in done.stdout and "95% CI for new seeds and samples" in done.stdout
    assert {row["trial"]: row["status"] for row in rows(tmp_path / "search")} == {
        "0000-seed1": "finished",
        "0000-seed2": "finished",
    }
    each_epoch_once(tmp_path / "search")
    assert all(has_test(tmp_path / "search" / row["folder"]) for row in rows(tmp_path / "search"))


@pytest.mark.slow
def test_small_search_finds_a_known_optimum(tmp_path: Path) -> None:
    """On synthetic faces, with Ray on two CPUs: the default does not learn, one of two configurations does."""
    space = space_in(tmp_path, f'"optimizer.lr" = {{ grid = [{BROKEN}, 1e-3] }}\n')
    done = finish(
        command(
            tmp_path / "search",
            space,
            *("--num-trials", "2", "--num-seeds", "3", "--finalists", "1", "--scheduler", "none"),
            data__shards=str(tmp_path / "faces"),
            data__synthetic_samples="[1000, 210, 70]",
            loss__supervision="one_hot",
            optimizer__lr=str(BROKEN),
            augment__policy="none",
            augment__flip_prob="0",
            runtime__log_every_steps="10",
            runtime__stop_check_steps="4",
        ),
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert "configuration 2 is significantly better than the default" in done.stdout
    assert tomllib.loads((tmp_path / "search" / "best.toml").read_text())["optimizer"]["lr"] == 1e-3
    assert done.stderr == ""
    ends = {row["trial"]: row["status"] for row in rows(tmp_path / "search")}
    assert len(ends) == 3 + 2 * 3 and set(ends.values()) == {"finished"}
    each_epoch_once(tmp_path / "search")
    tested = [row["trial"] for row in rows(tmp_path / "search") if has_test(tmp_path / "search" / row["folder"])]
    assert tested == ["0002-seed1"]


def has_test(folder: Path) -> bool:
    path = folder / "result.json"
    return path.exists() and bool(json.loads(path.read_text())["test"])


@pytest.mark.slow
def test_killed_search_resumes_to_the_same_result_with_and_without_ray(tiny: Path, tmp_path: Path) -> None:
    """Runs on one CPU rank are bit-identical, so all three searches are: complete, killed and resumed, on Ray."""
    space = space_in(tmp_path, SPACE)
    whole = finish(command(tmp_path / "whole", space, *SIZE, "--local", data__shards=str(tiny)), timeout=280)
    assert whole.returncode == 0, whole.stderr

    cut = command(tmp_path / "cut", space, *SIZE, "--local", data__shards=str(tiny))
    process = start(cut)
    trial = tmp_path / "cut" / "trials" / "0001-seed0"
    wait_until(lambda: len(records(trial, "epoch")) >= 1, "no epoch, or no trial", 120)
    kill(child_of(process.pid, "tune.run_trial"))  # a crash: the trial resumes from its checkpoint
    wait_until(
        lambda: (tmp_path / "cut" / "trials" / "0002-seed0" / "metrics.jsonl").exists(), "no epoch, or no trial", 120
    )
    for victim in [process.pid, child_of(process.pid, "tune.run_trial")]:  # the machine fails
        kill(victim)
    communicate(process)
    again = finish(cut, timeout=60)
    assert again.returncode == 2 and "pass --resume to continue it" in again.stderr
    resumed = finish([*cut, "--resume"], timeout=280)
    assert resumed.returncode == 0, resumed.stderr

    on_ray = finish(command(tmp_path / "ray", space, *SIZE, data__shards=str(tiny)), timeout=280)
    assert on_ray.returncode == 0, on_ray.stderr
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole") == rows(tmp_path / "ray")
    for name in ("whole", "cut", "ray"):
        each_epoch_once(tmp_path / name)
    answers = [[line for line in done.stdout.splitlines() if "on 2 seeds" in line] for done in (whole, resumed, on_ray)]
    assert answers[0] == answers[1] == answers[2] and len(answers[0]) == 2


@pytest.mark.slow
def test_crashed_trial_on_ray_resumes(tiny: Path, tmp_path: Path) -> None:
    space = space_in(tmp_path, SPACE)
    process = start(command(tmp_path / "search", space, *SIZE, data__shards=str(tiny), epochs="5"))
    trial = tmp_path / "search" / "trials" / "0001-seed0"
    wait_until(lambda: len(records(trial, "epoch")) >= 1, "no epoch, or no trial", 120)
    kill(holder_of(trial / ".lock"))
    _, err = communicate(process, 280)
    assert process.returncode == 0, err
    each_epoch_once(tmp_path / "search")
    assert {row["status"] for row in rows(tmp_path / "search")} == {"finished"}
    assert "resuming from" in (trial / "trial.log").read_text()


@pytest.mark.slow
def test_search_resumes_after_ctrl_c(tiny: Path, tmp_path: Path) -> None:
    space = space_in(tmp_path, SPACE)
    search = command(tmp_path / "search", space, *SIZE, data__shards=str(tiny), epochs="5")
    process = start(search)
    wait_until(
        lambda: len(records(tmp_path / "search" / "trials" / "0001-seed0", "epoch")) >= 1, "no epoch, or no trial", 120
    )
    process.send_signal(signal.SIGINT)
    out, err = communicate(process, 120)
    assert process.returncode in (2, 130), (out, err)
    assert "Traceback" not in err and err.splitlines()[-1].startswith("tune.search: error: interrupted")
    resumed = finish([*search, "--resume"], timeout=280)
    assert resumed.returncode == 0, resumed.stderr
    each_epoch_once(tmp_path / "search")


@pytest.mark.slow
def test_optuna_uses_known_results(tiny: Path, tmp_path: Path) -> None:
    """Twelve configurations and a resume with two more; conditions hold, none is drawn twice."""
    space = space_in(
        tmp_path,
        SPACE
        + '"optimizer.schedule" = { choice = ["exponential", "cosine"] }\n'
        + '"optimizer.lr_gamma" = { choice = [0.8, 0.9], when = { "optimizer.schedule" = "exponential" } }\n',
    )
    few = ("--num-seeds", "2", "--finalists", "1", "--scheduler", "none", "--searcher", "tpe")
    for words in (("--num-trials", "3"), ("--num-trials", "5", "--resume")):
        search = command(tmp_path / "search", space, *few, *words, data__shards=str(tiny), epochs="1")
        done = finish(search, timeout=280)
        assert done.returncode == 0, done.stderr
    searched = [row for row in rows(tmp_path / "search") if row["stage"] == "search"]
    assert [row["configuration"] for row in searched] == list(range(6))
    assert len({row["loss.lambda_min"] for row in searched}) == 6
    for row in searched[1:]:
        values = json.loads((tmp_path / "search" / row["folder"] / "trial.json").read_text())["values"]
        assert ("optimizer.lr_gamma" in values) == (values["optimizer.schedule"] == "exponential")


def child_of(pid: int, word: str) -> int:
    return next(child.pid for child in psutil.Process(pid).children(recursive=True) if word in child.cmdline())


def holder_of(lock: Path) -> int:
    """The process that has a file open."""
    for process in psutil.process_iter():
        try:
            if any(file.path == str(lock) for file in process.open_files()):
                return process.pid
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    raise AssertionError(f"nobody has {lock} open")


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
