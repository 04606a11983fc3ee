"""Run trials on a Ray cluster with Ray Tune; trials with several ranks also use Ray Train.

Tune schedules trials and restarts crashed ones. Its schedulers stop a trial by killing it, which leaves behind a
placement group that still holds GPUs. Therefore, each trial evaluates `tune.study.asha` itself and ends on all ranks
like a finished run. All state is in the study folder.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train as ray_train
import ray.tune as ray_tune
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search import Searcher
from ray.util.placement_group import PlacementGroup, get_current_placement_group, remove_placement_group

from adadf_dist.console.logs import configure_logging
from adadf_dist.console.terminal import tolerant
from adadf_dist.errors import single_line
from adadf_dist.files.atomic import write_text
from tune.runners.execute import run_trial
from tune.runners.local import MAX_ATTEMPTS, interrupted_error
from tune.runners.ray_cluster import TrialResources, trials_at_once
from tune.study.study import Study, load_study
from tune.study.trial import METRIC, Trial

DRIVER_RESOURCES = {"memory": 1.0}
"""Resources of a multi-rank trial's driver: one byte of memory, because Ray Tune requires some and the ranks use the
CPUs.
"""
PLACEMENT_FILE = "placement_group"
UPDATE_INTERVAL_S = 2.0
"""Minimum time between two progress updates, in seconds."""


class RayRunner:
    """Runs trials on the connected Ray cluster, each with the same resources."""

    def __init__(self, share: TrialResources) -> None:
        self.share = share
        self.concurrent = trials_at_once(share)

    def search(self, study: Study, on_update: Callable[[], None]) -> None:
        if study.options.searcher == "tpe":
            from tune.runners.optuna_searcher import OptunaSearcher  # optional

            self._tune(study, OptunaSearcher(study), 1 + study.options.trials, on_update)
            return
        self.run(study, study.search_trials(), on_update)

    def run(self, study: Study, trials: Sequence[Trial], on_update: Callable[[], None]) -> None:
        left = [trial for trial in trials if not study.trials.result(trial).status]
        for trial in left:
            study.trials.begin(trial)
        if left:
            self._tune(study, [trial.name for trial in left], 1, on_update)

    def _tune(
        self, study: Study, source: Sequence[str] | Searcher, samples: int, on_update: Callable[[], None]
    ) -> None:
        """Run the named trials, or the trials that a searcher suggests. Raises `UserError` if interrupted."""
        alone = self.share.workers == 1
        trainable = partial(train_single_process if alone else train_distributed, study_folder=str(study.folder))
        placed = ray_tune.with_resources(trainable, self.share.per_worker() if alone else DRIVER_RESOURCES)
        searcher = source if isinstance(source, Searcher) else None
        names = {} if searcher else {"trial": ray_tune.grid_search(list(source))}  # type: ignore[arg-type]
        events = TrialCallbacks(on_update)
        tuner = ray_tune.Tuner(
            placed,
            param_space={**names, **asdict(self.share)},
            tune_config=ray_tune.TuneConfig(
                search_alg=searcher,
                metric=METRIC if searcher else None,
                mode="max" if searcher else None,
                num_samples=samples,
                max_concurrent_trials=self.concurrent,
                reuse_actors=True,
            ),
            run_config=ray_tune.RunConfig(
                storage_path=str(study.folder / "ray"),
                failure_config=ray_tune.FailureConfig(max_failures=MAX_ATTEMPTS - 1),
                callbacks=[events],
                verbose=0,
            ),
        )
        with (
            (study.folder / "ray.log").open("a", encoding="utf-8") as log,
            redirect_stdout(log),
        ):  # Tune's output
            tuner.fit()
        for name, error in events.failed.items():
            record_failure(study, name, error)
        on_update()
        wanted = None if searcher else set(source)  # type: ignore[arg-type]
        begun = study.trials.outcomes()
        mine = [o for o in begun if (o.trial.stage == "search" if wanted is None else o.trial.name in wanted)]
        if not all(outcome.status for outcome in mine):
            raise interrupted_error()


def record_failure(study: Study, name: str, error: str) -> None:
    """Mark a trial as failed if it could not record its own status."""
    outcome = study.trials.get(name)
    if not outcome.status:
        study.trials.finish(outcome.trial, "failed", error)


class TrialCallbacks(ray_tune.Callback):
    """Calls `on_update` when a trial progresses, and collects the errors of trials that failed permanently."""

    def __init__(self, on_update: Callable[[], None]) -> None:
        self.failed: dict[str, str] = {}
        """Error messages by trial name."""
        self._on_update = on_update
        self._last = 0.0

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        lines = str(trial.get_error() or "unknown error").strip().splitlines()
        self.failed[trial.config["trial"]] = single_line(lines[-1], 300)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
        if time.monotonic() - self._last > UPDATE_INTERVAL_S:
            self._on_update()
            self._last = time.monotonic()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._on_update()


def report_of(record: Any) -> dict[str, float]:
    return {"epoch": record["epoch"], METRIC: record["validation"]["accuracy"]}


def train_single_process(config: dict[str, Any], study_folder: str) -> None:
    """Run a trial in one process."""
    train(config["trial"], study_folder, lambda record: ray_tune.report(report_of(record)))


class RankTrainer(TorchTrainer):
    """Ray Train's trainer without its cleanup of placement groups, which `release_placement_group` replaces.

    The cleaner asks the dashboard whether a trial is alive. If the dashboard's packages are not installed, it gets no
    reply, never cleans up, and remains as a process on the head node.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [callback for callback in callbacks if type(callback).__name__ != "PlacementGroupCleanerCallback"]


def save_placement_group(folder: Path) -> None:
    """Save the ID of the ranks' placement group for the next attempt, because the group outlives a dead driver."""
    group = get_current_placement_group()
    assert group is not None
    write_text(folder / PLACEMENT_FILE, group.id.hex())


def release_placement_group(folder: Path) -> None:
    """Release an earlier attempt's placement group, whose resources this attempt would otherwise wait for forever."""
    path = folder / PLACEMENT_FILE
    if path.exists():
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(path.read_text(encoding="utf-8")))))
        path.unlink()


def train_distributed(config: dict[str, Any], study_folder: str) -> None:
    """Run a multi-rank trial: start the ranks with Ray Train and wait."""
    study = load_study(Path(study_folder))
    release_placement_group(study.trials.path / config["trial"])
    share = TrialResources(config["workers"], config["cpus"], config["gpus"])
    passed_on: Any = TuneReportCallback()  # type: ignore[no-untyped-call]
    attempt = f"{config['trial']}-{time.time():.0f}"  # unique: Train would resume from another attempt's state
    RankTrainer(
        train_rank,
        train_loop_config={**config, "study": study_folder},
        torch_config=TorchConfig(timeout_s=round(study.base.runtime.timeout_s)),
        scaling_config=ray_train.ScalingConfig(
            num_workers=share.workers, use_gpu=share.gpus > 0, resources_per_worker=share.per_worker()
        ),
        run_config=ray_train.RunConfig(
            name=attempt, storage_path=str(study.folder / "ray" / "train"), callbacks=[passed_on]
        ),
    ).fit()


def train_rank(config: dict[str, Any]) -> None:
    """Run one rank of a multi-rank trial in Ray Train's process group."""
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # keep the trial's output free of Ray messages
    rank = ray_train.get_context().get_world_rank()
    if rank == 0:
        save_placement_group(load_study(Path(config["study"])).trials.path / config["trial"])
    train(config["trial"], config["study"], lambda record: ray_train.report(report_of(record)), rank)


def train(name: str, study_folder: str, report: Callable[[Any], None], rank: int = 0) -> None:
    """Run the trial and log to its trial.log.

    If the trial is interrupted, raises `RuntimeError` so that Ray Tune restarts it.
    """
    configure_logging(rank)
    study = load_study(Path(study_folder))
    trial = study.trials.get(name).trial
    with (
        (study.trials.path_of(trial) / "trial.log").open("a", encoding="utf-8") as output,
        redirect_stdout(tolerant(output)),
        redirect_stderr(tolerant(output)),
    ):
        outcome = run_trial(study, trial, report)
    if not outcome.status:
        raise RuntimeError(f"{name}: interrupted before finishing")
