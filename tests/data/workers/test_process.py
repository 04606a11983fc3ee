"""Worker processes are never forked from this one, end with their parent, and fail in one line."""

from __future__ import annotations

import ast
import gc
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import torch

from adadf_dist.data.datamodule import open_data
from adadf_dist.data.workers.process import worker_context
from adadf_dist.errors import UserError
from tests.data.loaders.test_loaders import config_for, corrupt_samples, make_truncated_jpeg
from tests.helpers.runs import ROOT, environment, finish, records, settings, start
from tests.helpers.runs import command as train_command
from tests.helpers.waiting import wait_until
from tests.helpers.worker_tasks import hold_the_lock, send_environment

CPU = torch.device("cpu")
BOUND_S = 60
"""Far more than a worker takes to end, even on a loaded machine."""


def calls(*folders: str) -> Iterator[tuple[str, ast.Call]]:
    """Every call in the Python files of these folders, with its location."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_package_code_never_forks() -> None:
    """No start method but forkserver or spawn, no Python code between fork and exec, no default context."""
    found = [f"{place}: {problem}" for place, call in calls("adadf_dist", "shards", "tune") for problem in forks(call)]
    assert not found, "\n".join(found)


def test_workers_share_no_queue() -> None:
    """A worker that dies in the middle of a message leaves the reader of a shared queue waiting forever.

    Benchmarks compare us with such queues.
    """
    shared = {"ProcessPoolExecutor", "Pool", "Queue", "SimpleQueue", "JoinableQueue", "Manager", "DataLoader"}
    threads = {"Queue", "queue.Queue", "queue.SimpleQueue"}
    found = [
        f"{place}: {name}"
        for place, call in calls("adadf_dist", "shards", "tune")
        if (name := ast.unparse(call.func)).rpartition(".")[2] in shared
        if name not in threads and not place.startswith("benchmarks/")
    ]
    assert not found, "\n".join(found)


def forks(call: ast.Call) -> list[str]:
    name = ast.unparse(call.func)
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    problems = [f"{name} with preexec_fn"] if "preexec_fn" in keywords else []
    if name in ("os.fork", "multiprocessing.Process", "multiprocessing.Pool", "mp.Process", "mp.Pool"):
        problems.append(name)
    methods = ("get_context", "set_start_method")
    if name.rpartition(".")[2] in methods and not name.startswith("ray"):
        chosen = [ast.unparse(argument) for argument in call.args]
        if chosen not in (["'forkserver'"], ["'spawn'"]):
            problems.append(f"{name}({', '.join(chosen)})")
    if name == "DataLoader" and "multiprocessing_context" not in keywords and None not in keywords:
        problems.append("DataLoader without multiprocessing_context")
    if name == "ProcessPoolExecutor" and len(call.args) < 2 and "mp_context" not in keywords:
        problems.append("ProcessPoolExecutor without a context")
    return problems


PARENT = """
    import multiprocessing
    from adadf_dist.data.workers.process import worker_context
    from tests.helpers.worker_tasks import hold_the_lock

    if __name__ == "__main__":
        context = worker_context("adadf_dist.data.workers.process")
        here, there = context.Pipe()
        context.Process(target=hold_the_lock, args=(there,)).start()
        print(here.recv(), flush=True)
        input()
"""


def test_stuck_worker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(PARENT))
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), text=True
    )
    assert parent.stdout is not None
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    wait_until(lambda: has_ended(worker), "the worker outlives its parent", BOUND_S)


SIGNALED = """
    import signal, sys
    from adadf_dist.data.workers.process import worker_context
    from tests.helpers.worker_tasks import echo

    def start(context):
        here, there = context.Pipe()
        process = context.Process(target=echo, args=(there,), daemon=True)
        process.start()
        here.send("ready")
        return process, here, here.recv()

    if __name__ == "__main__":
        for name in sys.argv[1:]:
            signal.signal(getattr(signal, name), lambda number, frame: None)
        context = worker_context("adadf_dist.data.workers.process")
        first, pipe, word = start(context)
        print(word, flush=True)
        sys.stdin.readline()
        start(context)  # a killed server is gone by now
        pipe.send("again")
        print(first.exitcode, pipe.recv(), flush=True)
"""


def test_workers_survive_stop_signals_to_the_process_group(tmp_path: Path) -> None:
    """As torchrun, SLURM and a terminal send them. The run decides when to stop, and then exits promptly."""
    names = ["SIGTERM", "SIGHUP", "SIGINT"]
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(SIGNALED))
    parent = subprocess.Popen(
        [sys.executable, str(script), *names],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None and parent.stdout.readline() == "ready\n"
    for name in names:
        os.killpg(parent.pid, getattr(signal, name))
    output, _ = parent.communicate("\n", timeout=BOUND_S)
    assert output == "None again\n"


def has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


LEFTOVER_PIPELINE = """
    import gc, os, sys
    import numpy as np
    import torch
    from nvidia.dali import fn, pipeline_def, types
    from adadf_dist.data.datamodule import open_data
    from adadf_dist.config.load import ConfigLayer, build_config

    @pipeline_def(batch_size=2, num_threads=2, device_id=None)
    def decoding():
        return fn.external_source(source=lambda: [np.zeros(4, np.uint8)] * 2, dtype=types.UINT8, ndim=1, batch=True)

    class Cycle:
        pass

    if __name__ == "__main__":
        gc.disable()
        cycle = Cycle()
        cycle.itself, cycle.pipeline = cycle, decoding()
        cycle.pipeline.build()
        cycle.pipeline.run()
        del cycle
        os.register_at_fork(after_in_child=gc.collect)
        values = {"data.shards": sys.argv[1], "data.loader": "torch", "data.num_workers": 2, "batch_size": 10}
        with open_data(build_config([ConfigLayer("test", values)]), 0, 1, torch.device("cpu")) as data:
            print(sum(len(batch.labels) for batch in data.train_batches(0)))
"""


def test_workers_inherit_no_dali_pipeline(faces: Path, tmp_path: Path) -> None:
    """A forked worker that garbage-collects its parent's DALI pipeline, whose threads it lacks, hangs or crashes."""
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(LEFTOVER_PIPELINE))
    done = finish([sys.executable, str(script), str(faces)])
    assert done.stdout == "64\n", done.stderr


@pytest.mark.slow
def test_killed_rank_leaves_no_worker(faces: Path, tmp_path: Path) -> None:
    values = settings(faces, tmp_path / "run", data__num_workers="2", epochs="200")
    rank = start(train_command(values))
    wait_until(lambda: records(tmp_path / "run", "steps"), "no training", 2 * BOUND_S)
    started = psutil.Process(rank.pid).children(recursive=True)
    assert len(started) >= 3, started  # the server and its workers
    rank.kill()
    rank.communicate()
    wait_until(lambda: all(map(has_ended, started)), "workers outlive their rank", BOUND_S)


def test_long_temporary_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("x" * 126)))
    with pytest.raises(UserError, match=r"TMPDIR: .* too long .* shorter path"):
        worker_context(__name__)


def refuse(*args: object, **options: object) -> None:
    raise OSError(28, "No space left on device")


def test_torch_loader_needs_no_semaphore(faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", refuse)
    with open_data(config_for(faces, data__loader="torch", data__num_workers=1), 0, 1, CPU) as data:
        assert sum(len(batch.labels) for batch in data.train_batches(0)) == 64


def finish_without_shared_memory(command: Sequence[str]) -> None:
    """Run a command where /dev/shm is mounted read-only."""
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("needs root and unshare to mount /dev/shm")
    mount = ["unshare", "-m", "bash", "-c", 'mount -t tmpfs -o ro tmpfs /dev/shm && exec "$@"', "_"]
    if subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let us mount /dev/shm")
    done = finish([*mount, *command], timeout=240)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_training_needs_no_shared_memory(faces: Path, tmp_path: Path) -> None:
    values = settings(faces, tmp_path / "run", data__num_workers="2", epochs="1")
    finish_without_shared_memory(train_command(values))


def test_build_needs_no_shared_memory(tmp_path: Path) -> None:
    words = ["--num-workers", "2", "--train", "20", "--validation", "5", "--test", "5", "--image-size", "32"]
    finish_without_shared_memory(
        [sys.executable, "-m", "shards.build", "synthetic", "--out", str(tmp_path / "out"), *words]
    )


@pytest.mark.parametrize("end", ["left early", "at the end", "closed in mid-pass", "a bad face"])
def test_pipelines_end_without_the_garbage_collector(
    faces: Path, tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipeline in a reference cycle would be destroyed by the garbage collector of any thread or process."""
    dali_loader = pytest.importorskip("adadf_dist.data.loaders.dali_loader", reason="DALI is not installed")
    alive: list[weakref.ref[object]] = []
    build = dali_loader.decode_pipeline

    def watched(*args: object, **options: object) -> object:
        pipeline = build(*args, **options)
        alive.append(weakref.ref(pipeline))
        return pipeline

    monkeypatch.setattr(dali_loader, "decode_pipeline", watched)
    gc.collect()
    gc.disable()
    try:
        if end == "a bad face":
            end_by_a_bad_face(faces, tmp_path / "bad")
            assert alive and all(reference() is None for reference in alive)
            return
        with open_data(config_for(faces, data__loader="dali", data__prefetch_batches=1), 0, 1, CPU) as data:
            batches = iter(data.train_batches(0))
            next(batches)
            if end == "left early":
                del batches
                next(iter(data.train_batches(1)))
            elif end == "at the end":
                list(batches)
        if end == "closed in mid-pass":
            del batches
        del data
        assert alive and all(reference() is None for reference in alive)
    finally:
        gc.enable()


def end_by_a_bad_face(faces: Path, folder: Path) -> None:
    """A JPEG that looks complete until its pixels end, which DALI reports while the pipeline runs."""
    corrupt_samples(faces, folder, "train", {0: make_truncated_jpeg(faces, "train", 0)})
    config = config_for(folder, data__loader="dali", data__prefetch_batches=1, data__max_bad_samples=0)
    with pytest.raises(UserError, match=r"shards\.verify"), open_data(config, 0, 1, CPU) as data:
        list(data.train_batches(0))


def test_workers_get_the_current_environment_of_their_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The current one: credentials and proxies may be set after the workers' fork server has started."""
    context = worker_context("adadf_dist.data.workers.process")
    here, there = context.Pipe()
    for changes in ({"ADADF_TEST_ONE": "1"}, {"ADADF_TEST_TWO": "2"}):
        with monkeypatch.context() as patch:
            for name, value in changes.items():
                patch.setenv(name, value)
            worker = context.Process(target=send_environment, args=(there,), daemon=True)
            worker.start()
            assert here.recv() == dict(os.environ)
        worker.join(BOUND_S)


def test_stuck_worker_can_be_terminated() -> None:
    """It holds the interpreter lock and ignores SIGTERM; multiprocessing calls `terminate` at exit."""
    context = worker_context("adadf_dist.data.workers.process")
    here, there = context.Pipe()
    worker = context.Process(target=hold_the_lock, args=(there,), daemon=True)
    worker.start()
    here.recv()
    worker.terminate()
    worker.join(BOUND_S)
    assert worker.exitcode == -signal.SIGKILL
