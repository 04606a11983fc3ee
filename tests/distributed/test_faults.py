"""Ranks that are killed, suspended or hang: how a run ends, restarts and resumes."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest
from torch.distributed.rendezvous import TCPStore

from adadf_dist import train
from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.distributed.rendezvous import exchange_start_id
from adadf_dist.training.watchdog import EXIT_HUNG
from tests.helpers.faults import FAULTY, assert_same_result, wait_for
from tests.helpers.forked import train_forked
from tests.helpers.runs import command, finish, records, settings, start, status
from tests.helpers.waiting import communicate, wait_until

KILLED_IN_WRITE = str(Path(__file__).parents[1] / "helpers" / "killed_in_write.py")


def elastic(values: dict[str, str], script: list[str] | None = None, restarts: int = 3) -> list[str]:
    """Two ranks under torchrun, which restarts both when one fails."""
    words = command(values, ranks=2, script=script or ["-m", "adadf_dist.train"])
    place = words.index("--standalone")
    return [*words[:place], "--max-restarts", str(restarts), "--monitor-interval", "0.2", *words[place:]]


def rank_process(launcher: int, rank: int) -> psutil.Process:
    """The process of a rank, which may still be starting."""
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
    """Wait for a launcher and its ranks; no process is left."""
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
def test_hung_rank_prints_stack_traces(fault: str, faces: Path, tmp_path: Path) -> None:
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
    else:  # only faulthandler can print, and the launcher has to end the process
        wait_for(lambda: len(records(tmp_path / "out", "steps")) == 2, process)
        time.sleep(6)
        assert process.poll() is None
        process.kill()
        assert "in faulty_forward" in process.communicate()[1]


@pytest.mark.slow
def test_suspended_run_continues(reference: Path, faces: Path, tmp_path: Path) -> None:
    """Suspending (Ctrl-Z) for longer than any limit of the watchdog is not a hang."""
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
def test_torchrun_restarts_when_a_rank_hangs(how: str, faces: Path, tmp_path: Path) -> None:
    """A suspended rank cannot print, so the other one prints its stacks. A hung rank prints and exits."""
    out = tmp_path / "out"
    values = settings(faces, out, runtime__timeout_s="8", checkpoint__save_every_steps="1")
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


def test_ranks_meet_over_a_reused_store() -> None:
    """Two starts over one store: the ranks of a start share a name that differs from the other start's."""
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


def test_missing_ranks_are_counted() -> None:
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with pytest.raises(RuntimeError, match=r"only 1 of 2 ranks joined within 0\.3 s"):
        exchange_start_id(server, 0, 2, 0.3)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 4])
def test_torchrun_restarts_when_a_rank_is_killed(kills: int, faces: Path, tmp_path: Path) -> None:
    out, chance, epochs = tmp_path / "out", random.Random(kills), 2 if kills == 1 else 6
    values = settings(faces, out, checkpoint__save_every_steps="1", epochs=str(epochs))
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
def test_sigkill_24_times_gives_identical_run(faces: Path, tmp_path: Path) -> None:
    """One run, killed 24 times, 8 of them with half a checkpoint on disk."""
    epochs, chance = "14", random.Random(5)
    whole = tmp_path / "whole"
    train.run(build_config([ConfigLayer("test", settings(faces, whole, epochs=epochs))]))
    out = tmp_path / "killed"
    values = settings(faces, out, epochs=epochs, checkpoint__save_every_steps="1")
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


def test_sigkill_between_last_batch_and_epoch_end_gives_identical_run(
    reference: Path, faces: Path, tmp_path: Path
) -> None:
    """No batch is left to set the learning rate that the epoch's record names."""
    out = tmp_path / "out"
    config = build_config([ConfigLayer("test", settings(faces, out, checkpoint__save_every_steps="1"))])
    train.run(config)
    (out / "checkpoints" / "checkpoint-0002-000000.pt").unlink()
    (out / "result.json").unlink()
    train.run(config)
    assert_same_result(out, reference)


@pytest.mark.slow
def test_sigterm_of_two_ranks_saves_and_run_resumes(faces: Path, tmp_path: Path) -> None:
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
def test_damaged_checkpoint_is_skipped(
    damage: str, reference: Path, faces: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    values = settings(faces, out, checkpoint__save_every_steps="3", epochs="1")
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
