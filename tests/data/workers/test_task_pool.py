"""Tasks in worker processes: ordered results; no death, error or signal blocks the parent."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from adadf_dist.data.workers.task_pool import map_tasks
from adadf_dist.errors import UserError
from tests.helpers.runs import environment
from tests.helpers.waiting import communicate, wait_until
from tests.helpers.worker_tasks import Fatal, do_step

pytestmark = pytest.mark.timeout(60)


def run(folder: Path, *steps: str | Fatal, on_samples: Callable[[int], object] = int) -> list[object]:
    return map_tasks(do_step, folder, steps, 2, on_samples)


def has_ended(number: int) -> bool:
    try:
        return psutil.Process(number).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_keep_the_order_of_tasks(tmp_path: Path, workers: int) -> None:
    sizes = [2000, 0, 1, 30, 0, 700, 5]
    counted: list[int] = []
    steps = [str(size) for size in sizes]
    assert map_tasks(do_step, tmp_path, steps, workers, counted.append) == steps
    assert sum(counted) == sum(sizes)


def test_samples_are_reported_in_groups_before_the_task_ends(tmp_path: Path) -> None:
    counted: list[int] = []

    def on_samples(count: int) -> None:
        counted.append(count)
        (tmp_path / "reported").touch()

    run(tmp_path, "count_until_reported", "100000", on_samples=on_samples)
    assert sum(counted) > 100_000 > 100 * len(counted)


@pytest.mark.parametrize("moment", ["die_at_work", "die_in_mid_result"])
def test_killed_worker_is_one_line_at_once(tmp_path: Path, moment: str) -> None:
    """The other worker keeps its pipe open and is killed too, before its next sample."""
    killed = r"^worker \d \(process \d+\) was killed by SIGKILL; .*--num-workers \(now 2\)$"
    with pytest.raises(UserError, match=killed):
        run(tmp_path, "be_stuck", moment)
    assert has_ended(int((tmp_path / "stuck").read_text()))


def test_worker_killed_while_starting_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^worker \d .*SIGKILL"):
        map_tasks(do_step, (tmp_path, Fatal()), ["0" * 2**24] * 2, 2, int)  # type: ignore[arg-type]


def test_worker_killed_while_receiving_a_task_is_one_line(tmp_path: Path) -> None:
    """The parent is waiting for space in the pipe."""
    with pytest.raises(UserError, match=r"^worker \d .*SIGKILL"):
        run(tmp_path, "die_in_next_task", "die_in_next_task", "0" * 2**24)


def test_worker_killed_between_tasks_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^worker \d .*SIGKILL"):
        run(tmp_path, "10", "10", Fatal(), "10")


def test_exiting_worker_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^worker \d .*exit status 3"):
        run(tmp_path, "end_process", "10")


def test_failure_stops_other_workers_at_their_next_sample(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="a bug") as caught:
        run(tmp_path, "count_without_end", "fail", "10")
    assert (tmp_path / "stopped").exists()
    (note,) = caught.value.__notes__
    assert "worker_tasks.py" in note
    assert 'raise KeyError("a bug")' in note


def test_worker_sending_a_result_stops_after_a_failure(tmp_path: Path) -> None:
    """The parent no longer reads it."""

    def on_samples(count: int) -> None:
        wait_until((tmp_path / "sender").exists)
        sender = psutil.Process(int((tmp_path / "sender").read_text()))
        wait_until(lambda: sender.status() == psutil.STATUS_SLEEPING, "the worker still computes")
        raise KeyError("the callback")

    with pytest.raises(KeyError, match="the callback"):
        run(tmp_path, "10", "send_a_large_result", on_samples=on_samples)
    assert has_ended(int((tmp_path / "sender").read_text()))


@pytest.mark.parametrize(
    ("step", "error", "text"),
    [
        ("raise_local_error", RuntimeError, "LocalError: a local error"),
        ("exit_early", SystemExit, "a system exit"),
        ("return_a_function", Exception, "pickle"),
        ("return_unreadable", ValueError, "not a number"),
    ],
)
def test_task_errors_are_raised(tmp_path: Path, step: str, error: type[BaseException], text: str) -> None:
    """Also errors that cannot be pickled or unpickled."""
    with pytest.raises(error, match=text):
        run(tmp_path, "10", step)


def test_stop_signals_are_left_to_the_parent(tmp_path: Path) -> None:
    assert run(tmp_path, "survive_signals", "survive_signals") == ["survived"] * 2


def refuse(*args: object, **options: object) -> None:
    raise OSError(28, "No space left on device")


def test_no_semaphore_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may have no space for one in /dev/shm."""
    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", refuse)
    assert run(tmp_path, "10", "20") == ["10", "20"]


def test_unstartable_workers_are_one_line(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(UserError, match=r"^worker 0 cannot start \(.*Too many open files\); [^\n]*$"):
            run(tmp_path, "10", "20")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_ends_a_build_waiting_for_workers(tmp_path: Path, second: signal.Signals) -> None:
    """One worker is suspended and never reaches its next sample."""
    words = ["shards.build", "synthetic", "--num-workers", "2", "--train", "9000", "--image-size", "224"]
    words += ["--out", str(tmp_path / "out")]
    build = subprocess.Popen(
        [sys.executable, "-m", *words], stderr=subprocess.PIPE, env=environment(), text=True, start_new_session=True
    )
    try:
        wait_until(lambda: len(list((tmp_path / "out.partial").glob("*.tar"))) == 2)
        (server,) = (p for p in psutil.Process(build.pid).children() if p.children())
        stuck, other = server.children()
        stuck.suspend()
        os.killpg(build.pid, signal.SIGINT)  # as a terminal does
        wait_until(lambda: has_ended(other.pid), "the build does not stop")
        assert build.poll() is None
        os.killpg(build.pid, second)
        _, errors = communicate(build)
    finally:
        build.kill()
    wait_until(lambda: has_ended(stuck.pid), "the worker outlives its parent")
    if second == signal.SIGTERM:
        assert build.returncode == -signal.SIGTERM
    else:
        assert build.returncode == 2
        assert errors.splitlines()[-1].startswith("shards.build: error: interrupted; progress kept in")
    assert "Traceback" not in errors
