"""Run one trial: resume it from its folder, and train until it finishes or is pruned by successive halving."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from adadf_dist.checkpoint.run_dir import lock_run_dir
from adadf_dist.config.load import override
from adadf_dist.config.schema import Config
from adadf_dist.distributed.world import World, init_world
from adadf_dist.errors import LostRankError, RunDirLockedError, UserError
from adadf_dist.train import Record, Stopped, run
from tune.study.study import Study
from tune.study.trial import Status, Trial, TrialResult

T = TypeVar("T")
PREVIOUS_WRITER_TIMEOUT_S = 180
"""Seconds to wait until an earlier process unlocks the folder: long enough for Ray to end the process, and for NFS to
release the locks of a dead node (90 s on Linux)."""


class PrunedTrial(Exception):  # noqa: N818 - not an error
    """Raised in `on_epoch` on every rank when the trial is pruned."""


def config_of(base: Config, trial: Trial, out: Path) -> Config:
    """Return the trial's training configuration. It keeps only the newest checkpoint and the selected one."""
    fixed = {
        "seed": trial.seed,
        "out": str(out),
        "resume": "auto",
        "evaluation.run_test": trial.test,
        "checkpoint.keep_last": 1,
        "evaluation.write_report": False,  # the search's page covers all trials
    }
    return override(base, {**trial.values, **fixed}, f"trial {trial.name}")


def run_trial(study: Study, trial: Trial, report: Callable[[Record], object] = lambda record: None) -> TrialResult:
    """Train the trial, report each epoch and record its status. Collective: every rank must call this.

    A `UserError` on rank 0 marks the trial as failed. Other errors are raised so that the trial is retried: an error
    on another rank, a lost rank, or a folder that another process still writes to. An interrupted trial has an empty
    `status`.
    """
    with init_world(study.base.runtime.timeout_s, finish_steps=False) as world:
        if world.is_main:
            wait_for_previous_writer(study.trials.path_of(trial))
            study.trials.begin(trial)
            recheck_rung(study, trial)
        if from_main(world, bool(study.trials.result(trial).status)):
            return from_main(world, study.trials.result(trial))
        return train(study, trial, report, world)


def train(study: Study, trial: Trial, report: Callable[[Record], object], world: World) -> TrialResult:
    """Train an unfinished trial from its last checkpoint."""

    def on_epoch(record: Record) -> None:
        halted = world.is_main and should_prune(study, trial, accuracy_of(record))
        if halted:
            study.trials.finish(trial, "pruned")  # before anything that may block or fail
        report(record)
        if from_main(world, halted):
            raise PrunedTrial

    status: Status = "finished"
    try:
        if isinstance(run(config_of(study.base, trial, study.trials.path_of(trial)), on_epoch), Stopped):
            status = ""
    except PrunedTrial:
        status = "pruned"
    except (LostRankError, RunDirLockedError):
        raise
    except UserError as problem:
        if not world.is_main:
            raise
        finish_trial(study, trial, "failed", str(problem))  # no collective: the state of the other ranks is unknown
        return study.trials.result(trial)
    if world.is_main and status:
        finish_trial(study, trial, status)
    return from_main(world, study.trials.result(trial))


def finish_trial(study: Study, trial: Trial, status: Status, reason: str = "") -> None:
    study.trials.finish(trial, status, reason)
    if not study.keeps_checkpoints(trial):
        study.trials.drop_checkpoints(trial)


def accuracy_of(record: Mapping[str, Any]) -> tuple[int, float]:
    """Return the epoch number and the validation accuracy in an epoch record."""
    return int(record["epoch"]), float(record["validation"]["accuracy"])


def recheck_rung(study: Study, trial: Trial) -> None:
    """Prune a resumed trial that had reached a rung but crashed before it could be pruned there."""
    accuracies = study.trials.result(trial).accuracies
    if accuracies and should_prune(study, trial, (len(accuracies), accuracies[-1])):
        study.trials.finish(trial, "pruned")


def wait_for_previous_writer(folder: Path) -> None:
    """Wait until no process holds the lock of the trial's folder.

    A killed search may leave a process that still writes to the folder, and a dead node may leave its lock. After
    `PREVIOUS_WRITER_TIMEOUT_S`, return anyway; training then reports that the folder is locked.
    """
    until = time.monotonic() + PREVIOUS_WRITER_TIMEOUT_S
    while time.monotonic() < until:
        try:
            with lock_run_dir(folder):
                return
        except RunDirLockedError:
            time.sleep(1)


def should_prune(study: Study, trial: Trial, reached: tuple[int, float]) -> bool:
    """Return whether to prune a trial, given the epoch that it has reached and its accuracy there."""
    (epoch, accuracy), halving = reached, study.halving_of(trial)
    if halving is None or epoch not in halving.rungs:
        return False
    others = [o for o in study.trials.outcomes() if o.trial.stage == "search" and o.trial.name != trial.name]
    return not halving.survives(accuracy, [o.accuracies[epoch - 1] for o in others if o.epochs >= epoch])


def from_main(world: World, value: T) -> T:
    """Return rank 0's value on every rank. If each rank read the trials' folders itself, ranks might disagree."""
    shared: Any = world.broadcast_object(value)
    return cast(T, shared)
