"""What a run does when its machine does what machines do: ranks killed, stopped and hung, memory and disks full."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import torch
from torch.distributed.rendezvous import TCPStore

from adadf_dist import train
from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.distributed.heartbeat import Heartbeat
from adadf_dist.distributed.rendezvous import exchange_start_id
from adadf_dist.distributed.stragglers import describe_straggler
from adadf_dist.engine.ddp import DDPEngine
from adadf_dist.errors import DiskFullError, UserError
from adadf_dist.files.atomic import os_errors_as_user_errors
from adadf_dist.files.disk_space import retry_on_full_disk
from adadf_dist.tracking.metrics_file import MetricsFile
from adadf_dist.training.watchdog import EXIT_HUNG
from tests.forked import train_forked
from tests.patience import communicate, wait_until
from tests.runs import assert_same_run, command, finish, records, settings, start, status

FAULTY = str(Path(__file__).with_name("faulty.py"))
KILLED_IN_WRITE = str(Path(__file__).with_name("killed_in_write.py"))


@pytest.fixture(scope="module")
def reference(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of two epochs on one rank."""
    out = tmp_path_factory.mktemp("runs") / "reference"
    train.run(build_config([ConfigLayer("test", settings(faces, out))]))
    return out


def assert_same_result(out: Path, reference: Path) -> None:
    """The same run, and what it came to."""
    assert_same_run(out, reference)
    assert (out / "result.json").read_text() == (reference / "result.json").read_text()


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str], timeout: float = 120) -> None:
    def ended_or_happened() -> bool:
        return process.poll() is not None or happened()

    wait_until(ended_or_happened, "the run did not get that far", timeout)
    assert happened(), "the run ended too early"


def elastic(values: dict[str, str], script: list[str] | None = None, restarts: int = 3) -> list[str]:
    """Two ranks under torchrun, which starts both again when one fails."""
    words = command(values, ranks=2, script=script or ["-m", "adadf_dist.train"])
    place = words.index("--standalone")
    return [*words[:place], "--max-restarts", str(restarts), "--monitor-interval", "0.2", *words[place:]]


def rank_process(launcher: int, rank: int) -> psutil.Process:
    """The process of a rank, which may just be starting."""
    found: list[psutil.Process] = []

    def look() -> bool:
        for process in psutil.Process(launcher).children(recursive=True):
            try:
                if process.environ().get("RANK") == str(rank) and "torch.distributed.run" not in process.cmdline():
                    found.append(process)
            except psutil.Error:
                continue
        return bool(found)

    wait_until(look, f"no process of rank {rank}")
    return found[0]


def end(process: subprocess.Popen[str], timeout: float = 240) -> tuple[str, str]:
    """Wait for a launcher and its ranks; nothing is left running."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    try:
        return communicate(process, timeout)
    finally:
        for one in [*family, process]:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue


# Hung ranks


@pytest.mark.parametrize("fault", ["hang", pytest.param("held", marks=pytest.mark.slow)])
def test_a_hung_rank_says_where(fault: str, faces: Path, tmp_path: Path) -> None:
    values = settings(faces, tmp_path / "out", runtime__timeout_s="3", epochs="1")
    process = start(command(values, script=[FAULTY, fault, "3"]))
    if fault == "hang":
        _, output = communicate(process)
        assert process.returncode == EXIT_HUNG
        assert re.search(
            r"rank 0 on \S+ .*no progress for \d s while training on a batch \(epoch 1, batch 3, after", output
        )
        assert "exiting with status 75" in output
        assert "in hang_for_ever" in output
    else:  # nobody but faulthandler can speak, and its launcher has to end the process
        wait_for(lambda: len(records(tmp_path / "out", "steps")) == 2, process)
        time.sleep(6)
        assert process.poll() is None
        process.kill()
        assert "in faulty_forward" in process.communicate()[1]


@pytest.mark.slow
def test_a_stopped_and_continued_run_goes_on(reference: Path, faces: Path, tmp_path: Path) -> None:
    """Ctrl-Z for longer than any limit of the watchdog is no hang."""
    out = tmp_path / "out"
    process = start(command(settings(faces, out, runtime__timeout_s="3")))
    wait_for(lambda: len(records(out, "steps")) >= 2, process)
    process.send_signal(signal.SIGSTOP)
    time.sleep(8)
    process.send_signal(signal.SIGCONT)
    _, output = communicate(process)
    assert process.returncode == 0, output
    assert_same_result(out, reference)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped", "hung"])
def test_torchrun_starts_again_when_a_rank_hangs(how: str, faces: Path, tmp_path: Path) -> None:
    """A stopped rank cannot speak: the other one prints its stacks. A hung one speaks and ends itself."""
    out = tmp_path / "out"
    values = settings(faces, out, runtime__timeout_s="8", checkpoint__every_steps="1")
    script = [FAULTY, "hang", "4"] if how == "hung" else None
    process = start(elastic(values, script, restarts=4))
    if how == "stopped":
        wait_for(lambda: len(records(out, "steps")) >= 2, process)
        rank_process(process.pid, 1).send_signal(signal.SIGSTOP)
    _, output = end(process)
    assert process.returncode == 0, output
    assert re.search(r"rank 0 on \S+ .*no progress for \d+ s", output)
    assert "lost contact with another rank" in output
    if how == "hung":
        assert re.search(r"rank 1 on \S+ .*no progress for \d+ s while training on a batch", output)
        assert "in hang_for_ever" in output
    assert [r["epoch"] for r in records(out, "epoch")] == [1, 2]
    assert [r["step"] for r in records(out, "steps")] == list(range(1, 9))


# Killed ranks


def test_ranks_meet_over_a_store_that_remembers() -> None:
    """Two starts over one store: each gives its ranks one name, another one, whatever the dead left behind."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    server.set("adadf/hello/2", "a rank that was killed before it was welcomed")

    def start_of(size: int) -> set[str]:
        names: list[str] = []
        stores = [TCPStore("127.0.0.1", server.port, is_master=False) for _ in range(size)]
        ranks = [
            threading.Thread(target=lambda r=rank: names.append(exchange_start_id(stores[r], r, size, 20)))
            for rank in range(size)
        ]
        for thread in reversed(ranks):
            thread.start()
        for thread in ranks:
            thread.join(30)
        assert len(names) == size
        return set(names)

    first, second, smaller = start_of(3), start_of(3), start_of(2)
    assert len(first) == len(second) == len(smaller) == 1
    assert len(first | second | smaller) == 3


def test_ranks_that_do_not_come_are_counted() -> None:
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with pytest.raises(RuntimeError, match=r"only 1 of 2 ranks joined within 0\.3 s"):
        exchange_start_id(server, 0, 2, 0.3)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 4])
def test_torchrun_starts_again_when_a_rank_is_killed(kills: int, faces: Path, tmp_path: Path) -> None:
    out, chance, epochs = tmp_path / "out", random.Random(kills), 2 if kills == 1 else 6
    values = settings(faces, out, checkpoint__every_steps="1", epochs=str(epochs))
    process = start(elastic(values, restarts=kills))
    for _ in range(kills):
        done = len(records(out, "steps"))
        wait_for(lambda done=done: len(records(out, "steps")) > done, process)
        rank_process(process.pid, chance.randrange(2)).kill()
        time.sleep(chance.uniform(0.5, 1.5))
    _, output = end(process)
    assert process.returncode == 0, output
    assert [r["epoch"] for r in records(out, "epoch")] == list(range(1, epochs + 1))
    assert [r["step"] for r in records(out, "steps")] == list(range(1, 4 * epochs + 1))
    assert status(out)["state"] == "finished"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twenty_four_kills_leave_no_trace(faces: Path, tmp_path: Path) -> None:
    """One run, killed 24 times, 8 of them with half a checkpoint on the disk."""
    epochs, chance = "14", random.Random(5)
    whole = tmp_path / "whole"
    train.run(build_config([ConfigLayer("test", settings(faces, whole, epochs=epochs))]))
    out = tmp_path / "killed"
    values = settings(faces, out, epochs=epochs, checkpoint__every_steps="1")
    for kill in range(24):
        if kill % 3 == 2:
            died = finish(command(values, script=[KILLED_IN_WRITE, str(chance.randint(1, 3))]))
            assert died.returncode == -signal.SIGKILL, died.stderr
            assert list((out / "checkpoints").glob("*.partial"))
            continue
        process = start(command(values))
        if kill % 3 == 1:  # at any moment after the first step
            done = len(records(out, "steps"))
            wait_for(lambda done=done: len(records(out, "steps")) > done, process)
            time.sleep(chance.uniform(0, 0.4))
        else:  # at any moment: while it imports, opens its data, restores
            time.sleep(chance.uniform(0.5, 6))
        process.kill()
        communicate(process)
        assert process.returncode == -signal.SIGKILL
    done = train_forked(values)
    assert done.returncode == 0, done.stderr
    assert_same_result(out, whole)


def test_a_kill_between_the_last_batch_and_the_end_of_its_epoch(reference: Path, faces: Path, tmp_path: Path) -> None:
    """No batch is left to set the learning rate that the epoch's record names."""
    out = tmp_path / "out"
    config = build_config([ConfigLayer("test", settings(faces, out, checkpoint__every_steps="1"))])
    train.run(config)
    (out / "checkpoints" / "checkpoint-0002-000000.pt").unlink()
    (out / "result.json").unlink()
    train.run(config)
    assert_same_result(out, reference)


@pytest.mark.slow
def test_sigterm_of_two_ranks_saves_and_the_run_goes_on(faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(command(settings(faces, out), ranks=2))
    wait_for(lambda: len(records(out, "steps")) >= 3, process)
    process.send_signal(signal.SIGTERM)
    end(process)
    assert status(out)["state"] == "stopped"
    stopped_at = len(records(out, "steps"))
    assert stopped_at < 8
    done = train_forked(settings(faces, out), 2, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stdout
    assert [r["step"] for r in records(out, "steps")] == list(range(1, 9))


# Damaged checkpoints


@pytest.mark.parametrize("damage", ["cut off", "a bit turned over", pytest.param("empty", marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_is_passed_over(
    damage: str, reference: Path, faces: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    values = settings(faces, out, checkpoint__every_steps="3", epochs="1")
    train.run(build_config([ConfigLayer("test", values)]))
    newest = sorted((out / "checkpoints").glob("checkpoint-*.pt"))[-1]
    size = newest.stat().st_size
    with newest.open("r+b") as file:
        if damage == "a bit turned over":
            file.seek(size // 2)
            byte = file.read(1)[0]
            file.seek(size // 2)
            file.write(bytes([byte ^ 0x10]))
        else:
            file.truncate(size // 2 if damage == "cut off" else 0)
    (out / "result.json").unlink()
    train.run(build_config([ConfigLayer("test", {**values, "epochs": "2"})]))
    output = capfd.readouterr()
    assert f"{newest.name}: truncated" in output.err
    assert "resuming from" in output.out
    assert_same_result(out, reference)


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
def test_memory_that_is_really_not_there(faces: Path, tmp_path: Path) -> None:
    values = settings(faces, tmp_path / "out", data__image_size="128", batch_size="32", runtime__precision="fp32")
    done = finish(command(values, script=[FAULTY, "tight", "2"]))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(r"out of memory on rank 0 .*batch_size 32 over 1 ranks .*can't allocate memory", done.stderr)


@pytest.mark.slow
def test_a_killed_decoding_process_is_one_line(faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(command(settings(faces, out, data__workers="1", epochs="30")))
    wait_for(lambda: len(records(out, "steps")) >= 2, process)
    (server,) = [child for child in psutil.Process(process.pid).children() if child.children()]
    server.children()[0].kill()
    _, output = communicate(process)
    assert process.returncode == 2, output
    assert "was killed by SIGKILL" in output.splitlines()[-1]
    assert "resumes from the last checkpoint" in output.splitlines()[-1]


# Stragglers


def test_a_slow_rank_is_named() -> None:
    ranks = {"slowest": 5, "host": "n3", "loading_s": 1.0, "evaluation_s": 12.0, "median_s": 9.0, "epoch_s": 60.0}
    output = describe_straggler(ranks)
    assert "straggler: rank 5 on n3 took 13.0 s" in output
    assert "(median of the ranks: 9.0 s), mostly evaluation" in output
    assert not describe_straggler({**ranks, "median_s": 11.0})  # 1.18 times
    assert not describe_straggler({**ranks, "epoch_s": 600.0})  # 4 s of ten minutes


def test_the_record_names_the_slowest_rank(reference: Path) -> None:
    for record in records(reference, "epoch"):
        ranks = record["ranks"]
        assert ranks["slowest"] == 0  # type: ignore[index]
        own = ranks["loading_s"] + ranks["evaluation_s"]  # type: ignore[index]
        assert 0 < own == ranks["median_s"] < ranks["epoch_s"]  # type: ignore[index]


@pytest.mark.slow
def test_a_slow_rank_of_two_is_warned_about(faces: Path, tmp_path: Path) -> None:
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
    """A file system of its own, of 380 MB."""
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


def test_a_full_disk_is_waited_for(reference: Path, faces: Path, disk: Path) -> None:
    """Room for one checkpoint of 117 MB: later saves in mid-epoch are warnings, the one at the epoch's end retries."""
    out, ballast = disk / "out", disk / "ballast"
    fill(ballast, 210)
    values = settings(faces, out, checkpoint__every_steps="2", checkpoint__keep="1", runtime__timeout_s="6")
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

    values |= {"checkpoint.every_steps": "1", "runtime.timeout_s": "60"}
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


def test_metrics_wait_for_room(disk: Path) -> None:
    metrics, ballast = MetricsFile(disk / "metrics.jsonl"), disk / "ballast"
    metrics.append({"step": 1})
    with pytest.raises(OSError, match="No space left"):
        fill(ballast, 500)
    long = "x" * 10_000  # a page has room for a few bytes more
    metrics.append({"step": 2, "text": long})
    metrics.append({"step": 3})
    assert [json.loads(line)["step"] for line in metrics.path.read_text().splitlines()] == [1]
    ballast.unlink()
    metrics.append({"step": 4})
    assert [json.loads(line)["step"] for line in metrics.path.read_text().splitlines()] == [1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's writing thread
def test_tensorboard_gives_way(disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from adadf_dist.tracking.tensorboard import TensorBoardSink

    with pytest.raises(OSError, match="No space left"):
        fill(disk / "ballast", 500)
    board = TensorBoardSink(disk / "tensorboard", purge_step=0)
    for step in range(2000):
        board.add("train", {"total": 1.0}, step)
    board.flush()
    board.close()
    assert capfd.readouterr().err.count("TensorBoard logging disabled") == 1


def test_patience_ends(disk: Path) -> None:
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
