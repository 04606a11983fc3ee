"""Searches on a Ray cluster of two nodes: lost nodes, killed drivers, halted trials, no leaks."""

from __future__ import annotations

import csv
import json
import re
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

import ray

from adadf_dist.train import Record, run
from tests.helpers.ray_nodes import Nodes, search_command, started, two_nodes
from tests.helpers.runs import finish
from tests.helpers.waiting import communicate, wait_until
from tune.runners.execute import config_of
from tune.runners.ray_cluster import connect
from tune.study.study import load_study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with two_nodes(elsewhere, monkeypatch) as nodes:
        yield nodes


def epochs_of(folder: Path) -> list[int]:
    path = folder / "metrics.jsonl"
    lines = [line for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
    return [record["epoch"] for record in map(json.loads, lines) if record["kind"] == "epoch"]


def rows(study: Path) -> list[dict[str, str]]:
    with (study / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def space(tmp_path: Path, text: str) -> str:
    path = tmp_path / "space.toml"
    path.write_text(text + "\n")
    return str(path)


def note(seen: list[float], record: Record) -> None:
    validation: Any = record["validation"]
    seen.append(validation["accuracy"])


def assert_ended_once(out: Path, epochs: int) -> None:
    """Assert that every trial has ended and has every epoch once, in order."""
    trials = sorted((out / "trials").iterdir())
    assert [row["trial"] for row in rows(out)] == [folder.name for folder in trials]
    for row, folder in zip(rows(out), trials, strict=True):
        assert row["status"] in ("finished", "pruned"), row
        done = epochs if row["status"] == "finished" else int(row["epochs"])
        assert epochs_of(folder) == list(range(1, done + 1)), folder.name


def test_search_survives_a_lost_node(nodes: Nodes, faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    values = {"epochs": "6", "data.shards": str(faces), "address": nodes.address}
    values |= {"space": space(tmp_path, '"loss.lambda_min" = { uniform = [0.0, 0.5] }')}
    values |= {"num-trials": "2", "num-seeds": "2", "finalists": "1", "scheduler": "none"}
    lost: dict[str, int] = {}
    others: set[str] = set()

    def in_the_middle() -> bool:
        """Whether the second node is in the middle of a trial, and the head runs another."""
        others.update(nodes.trials_on(nodes.cluster.head_node))
        done = {name: len(epochs_of(out / "trials" / name)) for name in nodes.trials_on(nodes.worker)}
        lost.update({name: epochs for name, epochs in done.items() if 1 <= epochs < 4})
        return bool(lost and others - lost.keys())

    with started(search_command(out, values)) as search:
        wait_until(lambda: in_the_middle() or search.poll() is not None, "no trial on the second node", 200)
        assert search.poll() is None, search.communicate()
        nodes.lose_worker()
        _, errors = communicate(search, 300)
    assert search.returncode == 0, errors
    assert errors == ""
    assert_ended_once(out, epochs=6)
    for name, epochs in lost.items():
        output = (out / "trials" / name / "trial.log").read_text()
        assert int(re.findall(r"resuming from \S+/checkpoint-(\d+)", output)[-1]) >= epochs
    study = load_study(out)
    for row in rows(out):  # the same runs by hand
        outcome = next(o for o in study.trials.outcomes() if o.trial.name == row["trial"])
        seen: list[float] = []
        config = config_of(study.base, replace(outcome.trial, test=False), tmp_path / "by hand" / row["trial"])
        run(config, partial(note, seen))
        assert list(outcome.accuracies) == seen, row["trial"]
    nodes.assert_free(within=10)


def test_search_resumes_after_its_driver_is_killed(nodes: Nodes, faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    values = {"epochs": "3", "data.shards": str(faces), "address": nodes.address, "ranks-per-trial": "2"}
    values |= {"space": space(tmp_path, '"loss.lambda_min" = { uniform = [0.0, 0.5] }')}
    values |= {"num-trials": "1", "num-seeds": "2", "finalists": "1", "scheduler": "none"}
    with started(search_command(out, values)) as search:
        first = out / "trials" / "0000-seed0"
        wait_until(lambda: epochs_of(first) or search.poll() is not None, "no first epoch", 200)
        assert search.poll() is None, search.communicate()
        assert nodes.busy()
        search.kill()
    nodes.assert_free(within=30)
    done = finish(search_command(out, values, "--resume"), timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert_ended_once(out, epochs=3)
    nodes.assert_free(within=10)


def test_trial_is_restarted_when_its_process_is_killed(nodes: Nodes, faces: Path, tmp_path: Path) -> None:
    """The process that Tune placed, which started the ranks: its resources are free for the next attempt."""
    out = tmp_path / "study"
    values = {"epochs": "4", "data.shards": str(faces), "address": nodes.address, "ranks-per-trial": "2"}
    values |= {"space": space(tmp_path, '"loss.lambda_min" = { uniform = [0.0, 0.5] }')}
    first = out / "trials" / "0000-seed0"
    with started(search_command(out, values)) as search:
        wait_until(lambda: epochs_of(first) or search.poll() is not None, "no first epoch", 200)
        assert search.poll() is None, search.communicate()
        for driver in nodes.drivers():
            driver.kill()
        wait_until(lambda: json.loads((first / "trial.json").read_text())["status"], "it does not go on", 200)
        search.send_signal(signal.SIGINT)  # among trials that have not started
        _, errors = communicate(search)
    assert search.returncode == 2 and errors.count("\n") == 1 and "interrupted; " in errors, errors
    assert json.loads((first / "trial.json").read_text())["status"] == "finished"
    assert "resuming from" in (first / "trial.log").read_text()
    assert epochs_of(first) == [1, 2, 3, 4]
    nodes.assert_free(within=30)


def test_halted_trials_leave_no_process(nodes: Nodes, faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    values = {"epochs": "4", "data.shards": str(faces), "address": nodes.address, "ranks-per-trial": "2"}
    values |= {"space": space(tmp_path, '"optimizer.lr" = { grid = [1e-2, 1e-12] }')}
    values |= {"num-trials": "2", "num-seeds": "2", "finalists": "1", "grace-period": "2", "reduction-factor": "2"}
    done = finish(search_command(out, values), timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert_ended_once(out, epochs=4)
    assert "pruned" in {row["status"] for row in rows(out)}
    nodes.assert_free(within=10)


def test_code_is_shipped_to_nodes_without_it(nodes: Nodes) -> None:
    """On both nodes, as when a search joins a cluster."""
    with connect(nodes.address):

        @ray.remote(num_cpus=1)
        def where() -> tuple[str, str, str]:
            import adadf_dist
            import tune

            return ray.get_runtime_context().get_node_id(), str(adadf_dist.__file__), str(tune.__file__)

        alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        found = ray.get([where.options(label_selector={"ray.io/node-id": node}).remote() for node in alive])
    assert {node for node, *_ in found} == set(alive) and len(alive) == 2
    assert all("/runtime_resources/py_modules_files/" in path for _, *paths in found for path in paths), found


def refusal(out: Path, values: Mapping[str, str]) -> str:
    """The one line with which a search is rejected before any trial."""
    done = finish(search_command(out, {"epochs": "3", **values}, "--grace-period", "2"), timeout=90)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("tune.search: error: "), done.stderr
    assert not (out / "trials").exists()
    return done.stderr


def test_missing_cluster_is_one_line(faces: Path, tmp_path: Path) -> None:
    output = refusal(tmp_path / "study", {"data.shards": str(faces), "address": "127.0.0.1:1", "space": "recipe"})
    assert "--address 127.0.0.1:1" in output


def test_oversized_trial_is_rejected(nodes: Nodes, faces: Path, tmp_path: Path) -> None:
    values = {"data.shards": str(faces), "address": nodes.address, "space": "recipe"}
    output = refusal(tmp_path / "workers", {**values, "ranks-per-trial": "3"})
    assert "--ranks-per-trial 3: a trial needs 3 CPUs, but the cluster has only 2" in output
    output = refusal(tmp_path / "gpus", {**values, "gpus-per-rank": "1"})
    assert "a trial needs 1 GPUs, but the cluster has only 0; lower --ranks-per-trial or --gpus-per-rank" in output
