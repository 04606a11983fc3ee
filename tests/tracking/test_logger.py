"""Progress of a run on a terminal, in a log file, and in its table."""

from __future__ import annotations

import io
import math
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tqdm import tqdm

from adadf_dist import train
from adadf_dist.checkpoint.progress import TrainingProgress
from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.console.progress import Pace
from adadf_dist.distributed.heartbeat import Heartbeat
from adadf_dist.method.losses import Losses
from adadf_dist.tracking.logger import RunLogger
from adadf_dist.training.final_test import Result, format_result
from tests.engine.test_no_sync import Watch
from tests.helpers.ranks import single_process_world
from tests.helpers.runs import settings


class Clock:
    """A clock that tests advance."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (
        "adadf_dist.console.progress",
        "adadf_dist.tracking.epoch_display",
        "adadf_dist.distributed.heartbeat",
    ):
        monkeypatch.setattr(f"{module}.time", clock)
    return clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class EagerBar(tqdm):  # type: ignore[type-arg]
    """Draws every change, however soon after the last one."""

    def __init__(self, **options: Any) -> None:
        super().__init__(mininterval=0, **options)


def test_progress_lines_come_within_seconds_and_then_regularly(clock: Clock) -> None:
    pace, lines = Pace(), []
    for _ in range(600):
        clock.now += 0.1
        if pace.due():
            lines.append(clock.now - 1000)
    assert 0 < lines[0] <= 5
    assert 3 <= len(lines) <= 7  # in a minute
    assert max(b - a for a, b in pairwise(lines)) <= 30


def evaluated(heartbeat: Heartbeat, clock: Clock, batches: int) -> None:
    for _ in heartbeat.wrap(range(batches), "evaluating test", 10 * batches, "samples", lambda thing: 10):
        clock.now += 1.0


def test_long_phase_prints_its_progress(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    evaluated(Heartbeat(visible=True), clock, 60)
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 7
    assert re.fullmatch(r"evaluating test: \d+ of 600 samples, 10/s, 0m\d\ds left", lines[0])
    first = int(lines[0].split()[2])
    assert lines[0].endswith(f"0m{(600 - first) // 10:02d}s left")


def test_short_phases_and_other_ranks_print_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    evaluated(Heartbeat(visible=True), clock, 2)
    evaluated(Heartbeat(), clock, 60)
    assert capsys.readouterr().err == ""


def test_terminal_gets_a_bar(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    evaluated(Heartbeat(visible=True), clock, 3)
    assert "evaluating test" in terminal.getvalue()
    assert "/30" in terminal.getvalue()


def losses(value: float) -> Losses:
    return Losses(*[torch.tensor(value) for _ in Losses._fields])


@pytest.fixture
def log(clock: Clock, tmp_path: Path) -> Iterator[RunLogger]:
    values = settings(tmp_path, tmp_path, runtime__log_every_steps="10", batch_size="64", epochs="3")
    log = RunLogger(build_config([ConfigLayer("test", values)]), single_process_world())
    yield log
    log.close()


def epoch(log: RunLogger, clock: Clock, batches: int, seconds: float, more: int = 0) -> None:
    """Batches of a training pass that take a given number of seconds each; `more` are left."""
    progress = TrainingProgress()
    log.start_epoch(progress, batches + more)
    for _ in range(batches):
        clock.now += seconds
        progress.batch += 1
        progress.step += 1
        log.log_step(progress, losses(1.5), 64, 1e-3)


def test_epoch_of_slow_steps_is_logged(log: RunLogger, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Steps of 5 s whose losses reach the host every 10 steps, 50 s apart."""
    began = clock.now
    output: list[float] = []
    say = log.info

    def note(text: str) -> None:
        output.append(clock.now - began)
        say(text)

    log.info = note  # type: ignore[method-assign]
    epoch(log, clock, 20, 5.0)
    gaps = [b - a for a, b in pairwise([0.0, *output, 100.0])]
    assert max(gaps) <= 30
    assert min(output) <= 5
    lines = capsys.readouterr().out.splitlines()
    seen = [re.search(r"batch (\d+)/20 .* (\d+) images/s .*epoch ETA (\d+)m(\d+)s", line) for line in lines[1:]]
    for found in seen:
        assert found is not None
        batch, rate, minutes, seconds = map(int, found.groups())
        assert rate == round(64 / 5)
        assert 60 * minutes + seconds == (20 - batch) * 5
    assert "loss 1.5000" in lines[-1]


def test_epoch_shows_no_loss_of_the_previous_one(
    log: RunLogger, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """Epochs of 5 batches; losses reach the host every 10 steps and at an epoch's end."""
    epoch(log, clock, 5, 10.0)
    assert "loss 1.5000" in capsys.readouterr().out
    epoch(log, clock, 4, 20.0, more=1)
    lines = capsys.readouterr().out
    assert "batch 4/5" in lines and "loss" not in lines


def test_terminal_shows_loss_rate_and_time_left(log: RunLogger, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("adadf_dist.tracking.epoch_display.tqdm", EagerBar)
    epoch(log, clock, 20, 1.0)
    log.close()
    text = terminal.getvalue()
    assert "epoch 1/3" in text
    assert "20/20" in text
    assert "loss 1.5000" in text
    assert "64 images/s" in text


def test_progress_does_not_synchronize_the_device(log: RunLogger, clock: Clock) -> None:
    with Watch() as watch:
        epoch(log, clock, 9, 20.0, more=9)  # losses would reach the host at the 10th step
        assert watch.seen == []


def test_table_is_explained_once(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    train.run(build_config([ConfigLayer("test", settings(faces, out, epochs="2"))]))
    output = capsys.readouterr().out
    assert output.count("* best validation accuracy so far") == 1
    assert output.count("classes>=t: number of classes") == 1
    train.run(build_config([ConfigLayer("test", settings(faces, out, epochs="3"))]))
    resumed = capsys.readouterr().out  # at epoch 3, which would otherwise be a row without a header
    assert resumed.count("* best validation accuracy so far") == 1
    assert resumed.count("epoch    loss") == 1


def measured(accuracy: float) -> dict[str, object]:
    values = dict.fromkeys(("votes_kl", "bayes_accuracy"))
    more = {"samples": 30, "mean_class_accuracy": accuracy, "accuracy_interval": (0.0, 1.0)}
    return {"accuracy": accuracy, **more, **values}


def test_single_test_is_printed_once() -> None:
    same = format_result(Result(2, 0.5, measured(0.25), measured(0.25), {}), epochs=2)
    assert [line for line in same if "25.00%" in line] == [same[1]]
    assert same[1].startswith("test accuracy (best and last epoch)")
    two = format_result(Result(1, 0.5, measured(0.25), measured(0.75), {}), epochs=2)
    assert sum("test accuracy (" in line for line in two) == 2
    assert math.isclose(float(two[2].split(": ")[1].split("%")[0]), 75.0)
