"""Trackers and profiler record what metrics.jsonl records, and never delay or stop training."""

from __future__ import annotations

import gzip
import importlib.util
import json
import struct
import sys
import threading
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from adadf_dist import train
from adadf_dist.config.keys import flatten
from adadf_dist.config.load import ConfigLayer, build_config, to_dict
from adadf_dist.config.schema import Config
from adadf_dist.errors import UserError
from adadf_dist.tracking import async_tracker
from adadf_dist.tracking.async_tracker import AsyncTracker, check_trackers
from adadf_dist.tracking.profiler import StepProfiler
from tests.helpers.forked import train_forked
from tests.helpers.runs import assert_same_run, command, records, settings, train_here

mlflow = pytest.importorskip("mlflow")
pytest.importorskip("wandb")

BLOCK, HEADER = 2**15, 7


def wandb_records(path: Path) -> Iterator[Any]:
    """A W&B file holds protocol buffers in LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + HEADER])
        whole += data[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (1, 4):  # a whole record, or its last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


@pytest.fixture(scope="module")
def tracked(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs in two sessions with every tracker; `plain` beside it has none, in one session."""
    folder = tmp_path_factory.mktemp("tracked")
    train_here(settings(faces, folder / "plain"))
    more = {"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    for epochs in ("1", "2"):
        values = settings(faces, folder / "run", epochs=epochs, runtime__trackers="[wandb,mlflow]")
        done = train_forked(values, timeout=200, **more)
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr
    return folder


def test_trackers_do_not_change_the_run(tracked: Path) -> None:
    assert_same_run(tracked / "run", tracked / "plain")


def test_mlflow_records_the_run(tracked: Path) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{tracked}/mlflow.db")
    (experiment,) = (e for e in client.search_experiments() if e.name == "adadf_dist")
    (run,) = client.search_runs([experiment.experiment_id])  # one, though it was resumed
    assert run.info.status == "FINISHED"
    assert run.data.params["batch_size"] == "16"
    steps = records(tracked / "run", "steps")
    history = client.get_metric_history(run.info.run_id, "train/total")
    assert [(m.step, m.value) for m in history] == [(r["step"], r["total"]) for r in steps]
    epochs = records(tracked / "run", "epoch")
    history = client.get_metric_history(run.info.run_id, "epoch/validation_accuracy")
    assert [(m.step, m.value) for m in history] == [(r["epoch"], r["validation"]["accuracy"]) for r in epochs]  # type: ignore[index]
    result = json.loads((tracked / "run" / "result.json").read_text())
    assert run.data.metrics["result/test/accuracy"] == result["test"]["accuracy"]


def test_wandb_records_the_run(tracked: Path) -> None:
    sessions = sorted((tracked / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(sessions) == 2
    ids, totals, summary, config = set(), [], {}, {}
    for session in sessions:
        for record in wandb_records(session):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                ids.add(record.run.run_id)
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if kind == "history":
                row = {"/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                if "train/total" in row:
                    totals.append((row["train/step"], row["train/total"]))
            if kind == "summary":
                summary |= {item.key: json.loads(item.value_json) for item in record.summary.update if item.key}
    assert len(ids) == 1
    assert totals == [(r["step"], r["total"]) for r in records(tracked / "run", "steps")]
    assert config["data"]["image_size"] == 32
    assert summary["result"] == json.loads((tracked / "run" / "result.json").read_text())


def test_profile_covers_its_steps(tracked: Path, faces: Path) -> None:
    """Of two steps, after three skipped ones and one warm-up; nothing else of the run changes."""
    out = tracked / "profiled"
    done = train_forked(settings(faces, out, runtime__profile_steps="2"))
    assert done.returncode == 0, done.stderr
    assert_same_run(out, tracked / "plain")
    (path,) = (out / "trace").iterdir()
    assert path.name == "steps-000005-000006.pt.trace.json.gz"
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    steps = {event["name"] for event in events if str(event.get("name", "")).startswith("ProfilerStep#")}
    assert len(steps) == 2
    assert any("conv" in str(event.get("name", "")) for event in events)


def test_run_too_short_for_a_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = StepProfiler(tmp_path / "trace", 2, 10, torch.device("cpu"))
    for _ in range(4):
        trace.step()
    trace.close()
    assert "skips the first 4 steps" in capsys.readouterr().err
    assert not (tmp_path / "trace").exists()
    trace = StepProfiler(tmp_path / "trace", 5, 10, torch.device("cpu"))
    for _ in range(6):
        trace.step()
    trace.close()
    assert [path.name for path in (tmp_path / "trace").iterdir()] == ["steps-000015-000016.pt.trace.json.gz"]


def test_unresponsive_server_does_not_block(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    train.main(command(settings(faces, tmp_path / "run", epochs="1", runtime__trackers="[mlflow]"))[3:])
    assert capsys.readouterr().err.count("warning: mlflow: ") == 1
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test"]["samples"] == 30


class Slow:
    """A tracker whose server never acknowledges a record."""

    answered = threading.Event()

    def __init__(self, config: Config) -> None: ...

    def add(self, section: str, values: Mapping[str, float], step: int) -> None:
        self.answered.wait()


def test_hanging_server_is_abandoned(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = types.ModuleType("slow_tracker")
    module.Tracker = Slow  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "slow_tracker", module)
    monkeypatch.setitem(async_tracker.MODULES, "slow", "slow_tracker")
    monkeypatch.setattr(async_tracker, "FLUSH_TIMEOUT_S", 0.2)
    monkeypatch.setattr(async_tracker, "MAX_QUEUE", 5)
    background = AsyncTracker("slow", Config())
    try:
        for step in range(100):
            background.add("train", {"total": 1.0}, step)
        background.close()  # although no call has returned
        assert capsys.readouterr().err.count("warning: slow: ") == 1
    finally:
        Slow.answered.set()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_missing_package_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = build_config([ConfigLayer("test", {"runtime.trackers": [name]})])
    check_trackers(config.runtime)
    own = importlib.util.find_spec
    monkeypatch.setattr(async_tracker, "find_spec", lambda wanted: None if wanted == name else own(wanted))
    with pytest.raises(UserError, match=rf"pip install 'adadf_dist\[{name}\]'"):
        check_trackers(config.runtime)


def test_unknown_tracker_is_one_line() -> None:
    with pytest.raises(UserError, match=r"runtime\.trackers"):
        build_config([ConfigLayer("test", {"runtime.trackers": ["wandbb"]})])


def test_keys_read_back() -> None:
    config = build_config([ConfigLayer("test", {"runtime.trackers": ["wandb", "mlflow"], "runtime.profile_steps": 3})])
    assert dict(flatten(to_dict(config)))["runtime.trackers"] == ["wandb", "mlflow"]
    assert build_config([ConfigLayer("again", to_dict(config))]) == config
