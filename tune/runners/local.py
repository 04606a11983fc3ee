"""The interface of trial runners, the local runner, and the command-line options that choose a runner."""

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
"""Maximum number of attempts for a trial that crashes; each resumes from the last checkpoint."""


class Runner(Protocol):
    """Interface of the runners, which run trials and skip those that have ended. All of them write the same folders."""

    def search(self, study: Study, on_update: Callable[[], None]) -> None:
        """Run the search's trials: the default configuration and `study.options.trials` others."""
        ...

    def run(self, study: Study, trials: Sequence[Trial], on_update: Callable[[], None]) -> None:
        """Run `trials`, calling `on_update` whenever the state of a trial may have changed."""
        ...


POLL_S = 2.0
"""Seconds between two polls of a trial."""
SHUTDOWN_GRACE_S = 120.0
"""Seconds that an interrupted trial gets to save its state before it is killed."""
STOP_WITH_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Script that runs a command to which Linux sends SIGTERM when the parent thread ends.

A `preexec_fn` could do the same, but would run Python code after a fork, which is unsafe.
"""


def interrupted_error() -> UserError:
    return UserError(
        "interrupted; the trials' checkpoints are kept. Rerun the command to continue; a search also needs --resume"
    )


class LocalRunner:
    """Runs trials one after another on this machine, each in its own process, so a crash affects only that trial."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        """Number of ranks per trial."""

    def search(self, study: Study, on_update: Callable[[], None]) -> None:
        self.run(study, study.search_trials(), on_update)

    def run(self, study: Study, trials: Sequence[Trial], on_update: Callable[[], None]) -> None:
        for trial in trials:
            if not study.trials.result(trial).status:
                study.trials.begin(trial)
                self._finish(study, trial, on_update)
                on_update()

    def _finish(self, study: Study, trial: Trial, on_update: Callable[[], None]) -> None:
        """Run one trial, retrying after crashes. Raises `UserError` if it is interrupted, which ends the search."""
        log = study.trials.path_of(trial) / "trial.log"
        command = [sys.executable, "-m", "tune.run_trial", str(study.folder), trial.name]
        if self.workers > 1:
            ranks = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(self.workers)]
            command = [sys.executable, "-m", *ranks, *command[1:]]
        for _ in range(MAX_ATTEMPTS):
            status = run_subprocess(command, log, on_update)
            if study.trials.result(trial).status:
                return
            if status == 0:
                raise interrupted_error()
        study.trials.finish(trial, "failed", f"failed {MAX_ATTEMPTS} times (exit status {status}); see {log}")


def run_subprocess(command: Sequence[str], log: Path, on_update: Callable[[], None]) -> int:
    """Run a command, append its output to `log`, and return its exit status.

    `on_update` is called every `POLL_S` seconds. If this process is interrupted, the command is stopped but first gets
    time to save its state.
    """
    with log.open("ab") as output:
        # a new process group, so that Ctrl-C reaches only this process; the kernel stops the child if we are killed
        child = subprocess.Popen(
            [sys.executable, "-c", STOP_WITH_PARENT, *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while True:
                try:
                    return child.wait(POLL_S)
                except subprocess.TimeoutExpired:
                    on_update()
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
    """Add the command-line options that specify where trials run."""
    where = parser.add_argument_group("where trials run")
    where.add_argument("--local", action="store_true", help="run trials one by one on this machine, without Ray")
    where.add_argument(
        "--address", default="", help="address of a Ray cluster; auto finds one (default: start one here)"
    )
    where.add_argument("--ranks-per-trial", type=int, default=1, help="ranks per trial (default: %(default)s)")
    where.add_argument("--cpus-per-rank", type=float, default=1.0, help="CPUs per rank (default: %(default)s)")
    where.add_argument(
        "--gpus-per-rank",
        type=float,
        help="GPUs per rank; with one rank per trial, it may be a fraction (default: 1 if there are GPUs, else 0)",
    )


@contextmanager
def make_runner(options: argparse.Namespace) -> Iterator[Runner]:
    """Yield the runner that the command-line options select.

    Raises `UserError` if Ray is unavailable or its cluster is too small for a trial.
    """
    if options.ranks_per_trial < 1:
        raise UserError(f"--ranks-per-trial {options.ranks_per_trial}: must be at least 1")
    if options.local and (options.address or options.gpus_per_rank is not None):
        raise UserError("--address and --gpus-per-rank apply only to Ray; remove them or remove --local")
    if options.local:
        yield LocalRunner(options.ranks_per_trial)
        return
    try:
        from tune.runners.ray_cluster import connect, trial_resources  # slow to import, and optional
        from tune.runners.ray_runner import RayRunner
    except ImportError as error:
        raise UserError(
            f"importing Ray failed ({single_line(error)}); {install_or_repair(error, 'tune')}, or pass --local"
        ) from None
    with connect(options.address):
        yield RayRunner(trial_resources(options.ranks_per_trial, options.cpus_per_rank, options.gpus_per_rank))
