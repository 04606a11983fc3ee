"""How a trial is run: trained from where its folder stands, until it is done or halving ends it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from adadf_dist.config import Config
from adadf_dist.errors import LostRank, UserError
from adadf_dist.runtime.folder import sole_writer
from adadf_dist.settings import override
from adadf_dist.train import Record, run
from adadf_dist.world import rank_in_environment
from tune.halving import Halving
from tune.study import Study
from tune.trial import End, Folder, Outcome, Trial

LAST_WORDS_S = 180
"""As long as Ray takes to end a process, and NFS to drop the locks of a node that died (90 s on Linux)."""


class Halt(Exception):  # noqa: N818 - not an error
    """Raised in `on_epoch` on every rank: the trial is not worth going on with."""


def ignore(record: Record) -> None:
    pass


def config_of(base: Config, trial: Trial, out: Path) -> Config:
    """The trial's configuration. Of its checkpoints the newest and the selected one are kept."""
    fixed = {"seed": trial.seed, "out": str(out), "evaluation.test": trial.test, "checkpoint.keep": 1}
    return override(base, {**trial.values, **fixed}, f"trial {trial.name}")


def run_trial(study: Study, trial: Trial, report: Callable[[Record], None] = ignore) -> Outcome:
    """Train, report each epoch, and write down how it ended. A collective of the ranks that train it.

    A `UserError` of the run is the trial's failure. Any other error is raised, for the trial to be tried again, and so
    is the loss of a rank. An interrupted trial has no end.
    """
    folder, halving = study.trials, study.halving_of(trial)
    main = (dist.get_rank() if dist.is_initialized() else rank_in_environment()) == 0
    if main:
        wait_for_the_last(folder.of(trial))
        folder.begin(trial)
    if agree(main and bool(folder.outcome(trial).end)):
        return folder.outcome(trial)

    def on_epoch(record: Record) -> None:
        report(record)
        if halving is not None and agree(main and halts(folder, trial, halving, record)):
            raise Halt

    end: End = "finished"
    reason = ""
    try:
        if run(config_of(study.base, trial, folder.of(trial)), on_epoch) is None:
            return folder.outcome(trial)
    except Halt:
        end = "halted"
    except LostRank:
        raise
    except UserError as problem:
        end, reason = "failed", str(problem)
    if main:
        folder.end(trial, end, reason)
        if not study.keeps_checkpoints(trial):
            folder.drop_checkpoints(trial)
    return folder.outcome(trial)


def wait_for_the_last(folder: Path) -> None:
    """A search that was killed may leave a process that still writes into its trial's folder, a dead node its lock.

    Where that is longer than `LAST_WORDS_S`, training itself says that the folder is taken.
    """
    until = time.monotonic() + LAST_WORDS_S
    while time.monotonic() < until:
        try:
            with sole_writer(folder):
                return
        except UserError:
            time.sleep(1)


def halts(folder: Folder, trial: Trial, halving: Halving, record: Mapping[str, Any]) -> bool:
    epoch = int(record["epoch"])
    if epoch not in halving.rungs:
        return False
    reached = [outcome for outcome in folder.outcomes() if outcome.trial.stage == "search" and outcome.epochs >= epoch]
    others = [outcome.accuracies[epoch - 1] for outcome in reached if outcome.trial.name != trial.name]
    return not halving.passes(float(record["validation"]["accuracy"]), others)


def agree(answer: bool) -> bool:
    """Rank 0's answer on every rank: it alone looks at the others' folders, which change meanwhile."""
    if not dist.is_initialized():
        return answer
    answers = [answer]
    dist.broadcast_object_list(answers, src=0)
    return answers[0]
