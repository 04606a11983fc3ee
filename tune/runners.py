"""Ways to get trials done."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from adadf_dist.errors import UserError
from tune.study import Study
from tune.trial import Outcome, Trial

TRIES = 3
"""Of a trial that crashes; each goes on from its last checkpoint."""


class Runner(Protocol):
    """Runs trials; those that have an end already are left alone. Every way leaves the same folders."""

    def search(self, study: Study, told: Callable[[], None]) -> None:
        """The default and `options.trials` configurations."""
        ...

    def run(self, study: Study, trials: Sequence[Trial], told: Callable[[], None]) -> None:
        """These trials. `told` is called whenever something may have changed."""
        ...


def interrupted() -> UserError:
    return UserError("interrupted; the trials' checkpoints are kept: the same command goes on (a search with --resume)")


class Local:
    """One trial after another on this machine, each in a process of its own: a crash is the trial's alone."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        """Ranks of a trial."""

    def search(self, study: Study, told: Callable[[], None]) -> None:
        drawn = [study.drawn(number) for number in range(1, study.options.trials + 1)]
        self.run(study, [study.default(), *drawn], told)

    def run(self, study: Study, trials: Sequence[Trial], told: Callable[[], None]) -> None:
        for trial in trials:
            if study.trials.outcome(trial).end:
                continue
            self._finish(study, trial)
            told()

    def _finish(self, study: Study, trial: Trial) -> Outcome:
        """Raises `UserError` when the trial was interrupted: so was the search."""
        study.trials.begin(trial)
        log = study.trials.of(trial) / "output.txt"
        command = [sys.executable, "-m", "tune.one", str(study.folder), trial.name]
        if self.workers > 1:
            ranks = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(self.workers)]
            command = [sys.executable, "-m", *ranks, *command[1:]]
        for _ in range(TRIES):
            with log.open("ab") as output:
                status = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
            outcome = study.trials.outcome(trial)
            if outcome.end:
                return outcome
            if status == 0:
                raise interrupted()
        study.trials.end(trial, "failed", f"ended {TRIES} times with status {status}; {log} says why")
        return study.trials.outcome(trial)


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
def runner_of(options: argparse.Namespace) -> Iterator[Runner]:
    """What `add_arguments` was told. Raises `UserError` where Ray is wanted and is not there, or holds no trial."""
    if options.workers_per_trial < 1:
        raise UserError(f"--workers-per-trial {options.workers_per_trial}: give 1 or more")
    if options.local:
        yield Local(options.workers_per_trial)
        return
    try:
        from tune.on_ray import OnRay  # seconds to import, and not everyone has Ray
    except ImportError as error:
        raise UserError(
            f"Ray does not import ({error}); install it with pip install 'adadf_dist[tune]', or give --local"
        ) from None
    runner = OnRay(options.address, options.workers_per_trial, options.gpus_per_worker, options.cpus_per_worker)
    try:
        yield runner
    finally:
        runner.close()
