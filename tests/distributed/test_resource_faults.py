"""Memory and disk that run out, and slow ranks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import torch

from adadf_dist import train
from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.distributed.heartbeat import Heartbeat
from adadf_dist.distributed.stragglers import describe_straggler
from adadf_dist.engine.ddp import DDPEngine
from adadf_dist.errors import DiskFullError, UserError
from adadf_dist.files.atomic import os_errors_as_user_errors
from adadf_dist.files.disk_space import retry_on_full_disk
from adadf_dist.tracking.metrics_file import MetricsFile
from tests.helpers.faults import FAULTY, assert_same_result, wait_for
from tests.helpers.forked import train_forked
from tests.helpers.runs import command, finish, records, settings, start, status
from tests.helpers.waiting import communicate

# Memory


def test_out_of_memory_is_one_line(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: DDPEngine, images: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")

    monkeypatch.setattr(DDPEngine, "forward", full)
    values = settings(faces, tmp_path / "out", runtime__precision="fp32")
    with pytest.raises(UserError) as caught:
        train.run(build_config([ConfigLayer("test", values)]))
    output = str(caught.value)
    assert "\n" not in output
    for word in (
        "out of memory on rank 0",
        "batch_size 16",
        "16 samples per rank",
        "image_size 32",
        "resnet10",
        "bf16",
    ):
        assert word in output


@pytest.mark.slow
def test_real_memory_shortage_is_one_line(faces: Path, tmp_path: Path) -> None:
    values = settings(faces, tmp_path / "out", data__image_size="128", batch_size="32", runtime__precision="fp32")
    done = finish(command(values, script=[FAULTY, "tight", "2"]))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(r"out of memory on rank 0 .*batch_size 32 over 1 ranks .*can't allocate memory", done.stderr)


@pytest.mark.slow
def test_killed_decoding_process_is_one_line(faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(command(settings(faces, out, data__num_workers="1", epochs="30")))
    wait_for(lambda: len(records(out, "steps")) >= 2, process)
    (server,) = [child for child in psutil.Process(process.pid).children() if child.children()]
    server.children()[0].kill()
    _, output = communicate(process)
    assert process.returncode == 2, output
    assert "was killed by SIGKILL" in output.splitlines()[-1]
    assert "run the same command to resume from the last checkpoint" in output.splitlines()[-1]


# Stragglers


def test_slow_rank_is_named() -> None:
    ranks = {"slowest": 5, "host": "n3", "loading_s": 1.0, "evaluation_s": 12.0, "median_s": 9.0, "epoch_s": 60.0}
    output = describe_straggler(ranks)
    assert "straggler: rank 5 on n3 took 13.0 s" in output
    assert "(median over ranks: 9.0 s), mostly evaluation" in output
    assert not describe_straggler({**ranks, "median_s": 11.0})  # 1.18 times
    assert not describe_straggler({**ranks, "epoch_s": 600.0})  # 4 s of ten minutes


def test_record_names_the_slowest_rank(reference: Path) -> None:
    for record in records(reference, "epoch"):
        ranks = record["ranks"]
        assert ranks["slowest"] == 0  # type: ignore[index]
        own = ranks["loading_s"] + ranks["evaluation_s"]  # type: ignore[index]
        assert 0 < own == ranks["median_s"] < ranks["epoch_s"]  # type: ignore[index]


@pytest.mark.slow
def test_slow_rank_of_two_gives_a_warning(faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = finish(command(settings(faces, out), ranks=2, script=[FAULTY, "slow", "5"]), timeout=180)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("warning: rank 1 on ") == 1
    first, second = (record["ranks"] for record in records(out, "epoch"))
    assert second["slowest"] == 1  # type: ignore[index]
    assert second["evaluation_s"] > 0.5 > first["evaluation_s"]  # type: ignore[index]


# Full disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A separate file system of 380 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and not subprocess.call(["mount", "-t", "tmpfs", "-o", "size=380m", "tmpfs", folder])
    if not mounted:
        pytest.skip("needs permission to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.call(["umount", "-l", folder])


def fill(path: Path, megabytes: int) -> None:
    path.write_bytes(bytes(megabytes << 20))


def test_full_disk_is_retried(reference: Path, faces: Path, disk: Path) -> None:
    """Space for one checkpoint of 117 MB: later mid-epoch saves are warnings, the one at the epoch's end retries."""
    out, ballast = disk / "out", disk / "ballast"
    fill(ballast, 210)
    values = settings(faces, out, checkpoint__save_every_steps="2", checkpoint__keep_last="1", runtime__timeout_s="6")
    ended = train_forked(values)
    assert ended.returncode == 2
    assert ended.stderr.count("checkpoint skipped") == 1  # step 4, before the epoch's end
    last = ended.stderr.splitlines()[-1]
    assert re.search(
        r"error: .*/out/checkpoints: not enough disk space for checkpoint-0001-000000\.pt \(11\d{7} bytes needed", last
    )
    assert ended.stderr.count("retrying in") >= 3
    kept = [p.name for p in (out / "checkpoints").iterdir()]
    assert kept == ["checkpoint-0000-000002.pt"]
    assert status(out)["state"] == "failed"

    values |= {"checkpoint.save_every_steps": "1", "runtime.timeout_s": "60"}
    process = start(command(values))
    assert process.stderr is not None
    output = ""
    while "retrying in" not in output:
        line = process.stderr.readline()
        assert line, output
        output += line
    assert "checkpoint skipped" in output  # step 3
    assert (out / "checkpoints" / "checkpoint-0000-000002.pt").exists()
    ballast.unlink()
    _, rest = communicate(process, 90)
    assert process.returncode == 0, rest
    assert_same_result(out, reference)


def test_metrics_wait_for_disk_space(disk: Path) -> None:
    metrics, ballast = MetricsFile(disk / "metrics.jsonl"), disk / "ballast"
    metrics.append({"step": 1})
    with pytest.raises(OSError, match="No space left"):
        fill(ballast, 500)
    long = "x" * 10_000  # a page has space for a few more bytes
    metrics.append({"step": 2, "text": long})
    metrics.append({"step": 3})
    assert [json.loads(line)["step"] for line in metrics.path.read_text().splitlines()] == [1]
    ballast.unlink()
    metrics.append({"step": 4})
    assert [json.loads(line)["step"] for line in metrics.path.read_text().splitlines()] == [1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's writing thread
def test_tensorboard_is_disabled_on_a_full_disk(disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from adadf_dist.tracking.tensorboard import TensorBoardSink

    with pytest.raises(OSError, match="No space left"):
        fill(disk / "ballast", 500)
    board = TensorBoardSink(disk / "tensorboard", purge_step=0)
    for step in range(2000):
        board.add("train", {"total": 1.0}, step)
    board.flush()
    board.close()
    assert capfd.readouterr().err.count("TensorBoard logging disabled") == 1


def test_waiting_for_disk_space_ends(disk: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        fill(disk / "ballast", 500)
    path, tries = disk / "file", []

    def write() -> None:
        tries.append(time.monotonic())
        with os_errors_as_user_errors(path):
            path.write_bytes(bytes(100_000))

    with pytest.raises(DiskFullError, match="free some space"):
        retry_on_full_disk(write, 6.0, Heartbeat().wait_for_disk)
    pauses = [after - before for before, after in pairwise(tries)]
    assert len(pauses) >= 3
    assert max(pauses) > 2 * pauses[0]
    assert tries[-1] - tries[0] > 2.9
