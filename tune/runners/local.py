"""Ways to get trials done."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from adadf_dist.errors import UserError, install_or_repair, single_line
from tune.study.study import Study
from tune.study.trial import Trial

MAX_ATTEMPTS = 3
"""Of a trial that crashes; each goes on from its last checkpoint."""


class Runner(Protocol):
    """Runs trials; those that have an end already are left alone. Every way leaves the same folders."""

    def search(self, study: Study, told: Callable[[], None]) -> None:
        """The default and `options.trials` configurations."""
        ...

    def run(self, study: Study, trials: Sequence[Trial], told: Callable[[], None]) -> None:
        """These trials. `told` is called whenever something may have changed."""
        ...


LOOK_S = 2.0
"""Seconds between two looks at a trial."""
SHUTDOWN_GRACE_S = 120.0
"""Seconds in which a trial that was told to stop may save."""
STOP_WITH_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Starts a command that gets SIGTERM when the thread that started it ends; not a fork of ours that runs Python code."""


def interrupted_error() -> UserError:
    return UserError("interrupted; the trials' checkpoints are kept: the same command goes on (a search with --resume)")


class LocalRunner:
    """One trial after another on this machine, each in a process of its own: a crash is the trial's alone."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        """Ranks of a trial."""

    def search(self, study: Study, told: Callable[[], None]) -> None:
        self.run(study, study.search_trials(), told)

    def run(self, study: Study, trials: Sequence[Trial], told: Callable[[], None]) -> None:
        for trial in trials:
            if not study.trials.result(trial).end:
                study.trials.begin(trial)
                self._finish(study, trial, told)
                told()

    def _finish(self, study: Study, trial: Trial, told: Callable[[], None]) -> None:
        """Raises `UserError` when the trial was interrupted: so was the search."""
        log = study.trials.path_of(trial) / "output.txt"
        command = [sys.executable, "-m", "tune.run_trial", str(study.folder), trial.name]
        if self.workers > 1:
            ranks = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(self.workers)]
            command = [sys.executable, "-m", *ranks, *command[1:]]
        for _ in range(MAX_ATTEMPTS):
            status = run_subprocess(command, log, told)
            if study.trials.result(trial).end:
                return
            if status == 0:
                raise interrupted_error()
        study.trials.finish(trial, "failed", f"ended {MAX_ATTEMPTS} times with status {status}; {log} says why")


def run_subprocess(command: Sequence[str], log: Path, told: Callable[[], None]) -> int:
    """Exit status of a process that is told to stop, and may save, when we are. Looks at it every `POLL_S`."""
    with log.open("ab") as output:
        # in a session of its own, so that Ctrl-C comes to us, and once; told to stop by the kernel when we are killed
        child = subprocess.Popen(
            [sys.executable, "-c", STOP_WITH_PARENT, *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while True:
                try:
                    return child.wait(LOOK_S)
                except subprocess.TimeoutExpired:
                    told()
        except BaseException as problem:
            child.terminate()
            try:
                child.wait(SHUTDOWN_GRACE_S)
            except subprocess.TimeoutExpired:
                child.kill()
            if isinstance(problem, KeyboardInterrupt):
                raise interrupted_error() from None
            raise


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where trials run."""
    where = parser.add_argument_group("where trials run")
    where.add_argument("--local", action="store_true", help="one after another on this machine, without Ray")
    where.add_argument("--address", default="", help="of a Ray cluster, or auto; empty: one is started here")
    where.add_argument("--workers-per-trial", type=int, default=1, help="ranks of a trial (default: %(default)s)")
    where.add_argument("--cpus-per-worker", type=float, default=1.0, help="(default: %(default)s)")
    where.add_argument(
        "--gpus-per-worker", type=float, help="a fraction is allowed for one rank (default: 1 if there are GPUs)"
    )


@contextmanager
def make_runner(options: argparse.Namespace) -> Iterator[Runner]:
    """What `add_arguments` was told. Raises `UserError` where Ray is wanted and is not there, or holds no trial."""
    if options.workers_per_trial < 1:
        raise UserError(f"--workers-per-trial {options.workers_per_trial}: give 1 or more")
    if options.local and (options.address or options.gpus_per_worker is not None):
        raise UserError("--local: trials run here, one after another; leave --address and --gpus-per-worker out")
    if options.local:
        yield LocalRunner(options.workers_per_trial)
        return
    try:
        from tune.runners.ray_cluster import connect, trial_resources  # seconds to import, and not everyone has Ray
        from tune.runners.ray_runner import RayRunner
    except ImportError as error:
        raise UserError(
            f"Ray does not import ({single_line(error)}); {install_or_repair(error, 'tune')}, or give --local"
        ) from None
    with connect(options.address):
        yield RayRunner(trial_resources(options.workers_per_trial, options.cpus_per_worker, options.gpus_per_worker))
