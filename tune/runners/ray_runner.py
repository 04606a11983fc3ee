"""Trials on a Ray cluster, by Ray Tune; with several ranks a trial, by Ray Train inside it.

Tune places trials and restarts crashed ones. Its schedulers stop a trial by killing it, which leaves an inner placement
group behind that holds GPUs. So each trial asks `tune.study.asha` itself, and ends on all its ranks like any finished
run; what a search knows is what its folder says.
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

from adadf_dist.console.terminal import tolerant
from adadf_dist.errors import single_line
from adadf_dist.files.atomic import write_text
from tune.runners.execute import run_trial
from tune.runners.local import MAX_ATTEMPTS, interrupted_error
from tune.runners.ray_cluster import TrialResources, trials_at_once
from tune.study.study import Study, load_study
from tune.study.trial import METRIC, Trial

DRIVER_RESOURCES = {"memory": 1.0}
"""What the driver of a trial of several ranks takes, in bytes: Tune asks for something, and CPUs are for the ranks."""
PLACEMENT_FILE = "placement_group"
UPDATE_INTERVAL_S = 2.0
"""Least seconds between two looks at how the trials stand."""


class RayRunner:
    """A cluster that was joined, and what a trial takes of it."""

    def __init__(self, share: TrialResources) -> None:
        self.share = share
        self.concurrent = trials_at_once(share)

    def search(self, study: Study, told: Callable[[], None]) -> None:
        if study.options.searcher == "tpe":
            from tune.runners.optuna_searcher import OptunaSearcher  # Optuna is asked for by name

            self._tune(study, OptunaSearcher(study), 1 + study.options.trials, told)
            return
        self.run(study, study.search_trials(), told)

    def run(self, study: Study, trials: Sequence[Trial], told: Callable[[], None]) -> None:
        left = [trial for trial in trials if not study.trials.result(trial).end]
        for trial in left:
            study.trials.begin(trial)
        if left:
            self._tune(study, [trial.name for trial in left], 1, told)

    def _tune(self, study: Study, source: Sequence[str] | Searcher, samples: int, told: Callable[[], None]) -> None:
        """Have Tune run the trials named, or those that a searcher names. Raises `UserError` when interrupted."""
        alone = self.share.workers == 1
        trainable = partial(train_single_process if alone else train_distributed, study_folder=str(study.folder))
        placed = ray_tune.with_resources(trainable, self.share.per_worker() if alone else DRIVER_RESOURCES)
        searcher = source if isinstance(source, Searcher) else None
        names = {} if searcher else {"trial": ray_tune.grid_search(list(source))}  # type: ignore[arg-type]
        events = TrialCallbacks(told)
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
        with (study.folder / "ray.txt").open("a", encoding="utf-8") as log, redirect_stdout(log):  # the table is ours
            tuner.fit()
        for name, error in events.failed.items():
            freeze(study, name, error)
        told()
        wanted = None if searcher else set(source)  # type: ignore[arg-type]
        begun = study.trials.outcomes()
        mine = [o for o in begun if (o.trial.stage == "search" if wanted is None else o.trial.name in wanted)]
        if not all(outcome.end for outcome in mine):
            raise interrupted_error()


def freeze(study: Study, name: str, error: str) -> None:
    """Write down the failure of a trial that has not said itself how it ended."""
    outcome = study.trials.get(name)
    if not outcome.end:
        study.trials.finish(outcome.trial, "failed", error)


class TrialCallbacks(ray_tune.Callback):
    """Passes on that something happened, and keeps what failed for good."""

    def __init__(self, told: Callable[[], None]) -> None:
        self.failed: dict[str, str] = {}
        """Why, by the trial's name."""
        self._told = told
        self._last = 0.0

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        lines = str(trial.get_error() or "no word of why").strip().splitlines()
        self.failed[trial.config["trial"]] = single_line(lines[-1], 300)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
        if time.monotonic() - self._last > UPDATE_INTERVAL_S:
            self._told()
            self._last = time.monotonic()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._told()


def report_of(record: Any) -> dict[str, float]:
    return {"epoch": record["epoch"], METRIC: record["validation"]["accuracy"]}


def train_single_process(config: dict[str, Any], study_folder: str) -> None:
    """A trial of one process."""
    train(config["trial"], study_folder, lambda record: ray_tune.report(report_of(record)))


class RankTrainer(TorchTrainer):
    """Ray Train without its cleaner of placement groups, for which `release_placement_group` stands in.

    That one asks the dashboard whether a trial still lives. Where Ray came without the dashboard's packages it never
    hears, so it never cleans, and stays as a process on the head.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [callback for callback in callbacks if type(callback).__name__ != "PlacementGroupCleanerCallback"]


def save_placement_group(folder: Path) -> None:
    """Write down the placement group of the ranks, for the next try: it outlives a driver that died."""
    group = get_current_placement_group()
    assert group is not None
    write_text(folder / PLACEMENT_FILE, group.id.hex())


def release_placement_group(folder: Path) -> None:
    """Give back what an earlier try of the trial still holds, or this one would wait for it for ever."""
    path = folder / PLACEMENT_FILE
    if path.exists():
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(path.read_text(encoding="utf-8")))))
        path.unlink()


def train_distributed(config: dict[str, Any], study_folder: str) -> None:
    """A trial of several ranks: a driver that starts them by Ray Train, and waits."""
    study = load_study(Path(study_folder))
    release_placement_group(study.trials.path / config["trial"])
    share = TrialResources(config["workers"], config["cpus"], config["gpus"])
    passed_on: Any = TuneReportCallback()  # type: ignore[no-untyped-call]
    attempt = f"{config['trial']}-{time.time():.0f}"  # of a name of its own: Train would go on from another's state
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
    """One rank of a trial; the process group is Ray's."""
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # the trial's output is the run's own
    if ray_train.get_context().get_world_rank() == 0:
        save_placement_group(load_study(Path(config["study"])).trials.path / config["trial"])
    train(config["trial"], config["study"], lambda record: ray_train.report(report_of(record)))


def train(name: str, study_folder: str, report: Callable[[Any], None]) -> None:
    """Raises `RuntimeError` for a trial that was told to stop, so that Tune starts it elsewhere."""
    study = load_study(Path(study_folder))
    trial = study.trials.get(name).trial
    with (
        (study.trials.path_of(trial) / "output.txt").open("a", encoding="utf-8") as output,
        redirect_stdout(tolerant(output)),
        redirect_stderr(tolerant(output)),
    ):
        outcome = run_trial(study, trial, report)
    if not outcome.end:
        raise RuntimeError(f"{name}: was told to stop before its end")
