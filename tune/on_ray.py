"""Trials on a Ray cluster, by Ray Tune; with several ranks a trial, by Ray Train inside it.

Tune places trials and starts crashed ones again. Whether a trial goes on is not left to a scheduler of Tune's, which
kills: each trial asks `tune.halving` itself and ends, on all its ranks, like any run that is over. So nothing is left
behind that would hold GPUs (a killed trial's inner placement group does), and a search knows what its folder says.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train as ray_train
import ray.tune as ray_tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from adadf_dist.errors import UserError
from tune.runners import TRIES
from tune.study import Study, load
from tune.trial import Trial, run_trial

ROOT = Path(__file__).resolve().parents[1]


class OnRay:
    """A cluster that is there (`address`), or one that this process starts on its machine."""

    def __init__(self, address: str, workers: int, gpus_per_worker: float | None, cpus_per_worker: float) -> None:
        self.workers = workers
        self.cpus = cpus_per_worker
        environment = {"env_vars": {"RAY_TRAIN_V2_ENABLED": "1", "PYTHONPATH": str(ROOT)}}
        try:
            ray.init(
                address=address or "local", runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR
            )
        except ConnectionError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"--address {address}: no Ray cluster there ({reason}); start one or leave it out"
            ) from None
        held: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self.gpus = (1.0 if held.get("GPU") else 0.0) if gpus_per_worker is None else gpus_per_worker
        self.concurrent = self._fit(held)

    def close(self) -> None:
        ray.shutdown()

    def _fit(self, held: dict[str, float]) -> int:
        """Trials that the cluster holds at once. Raises `UserError` when it holds none."""
        wanted = {"CPU": self.cpus * self.workers, "GPU": self.gpus * self.workers}
        for name, amount in wanted.items():
            if amount > held.get(name, 0.0):
                raise UserError(
                    f"a trial of {self.workers} workers takes {amount:g} {name}s, the cluster has "
                    f"{held.get(name, 0.0):g}; lower --workers-per-trial, or --{name.lower()}s-per-worker"
                )
        return min(math.floor(held[name] / amount) for name, amount in wanted.items() if amount)

    def search(self, study: Study, told: Callable[[], None]) -> None:
        drawn = [study.drawn(number) for number in range(1, study.options.trials + 1)]
        self.run(study, [study.default(), *drawn], told)

    def run(self, study: Study, trials: Sequence[Trial], told: Callable[[], None]) -> None:
        left = [trial for trial in trials if not study.trials.outcome(trial).end]
        if not left:
            return
        for trial in left:
            study.trials.begin(trial)
        trainable = partial(train_here if self.workers == 1 else train_on_ranks, study_folder=str(study.folder))
        bundles = [{"CPU": self.cpus, "GPU": self.gpus}] if self.workers == 1 else [{"CPU": 0.0}]
        placed = ray_tune.with_resources(trainable, ray_tune.PlacementGroupFactory(bundles))
        scaling = {"workers": self.workers, "gpus": self.gpus, "cpus": self.cpus}
        tuner = ray_tune.Tuner(
            placed,
            param_space={"trial": ray_tune.grid_search([trial.name for trial in left]), **scaling},
            tune_config=ray_tune.TuneConfig(max_concurrent_trials=self.concurrent),
            run_config=ray_tune.RunConfig(
                storage_path=str(study.folder / "ray"),
                failure_config=ray_tune.FailureConfig(max_failures=TRIES - 1),
                callbacks=[Told(told)],
                verbose=0,
            ),
        )
        results = tuner.fit()
        errors = {(r.config or {}).get("trial"): r.error for r in (results[i] for i in range(len(results)))}
        for trial in left:
            if not study.trials.outcome(trial).end:
                study.trials.end(trial, "failed", " ".join(str(errors.get(trial.name)).split())[-300:])


class Told(ray_tune.Callback):
    """Passes on that something happened."""

    def __init__(self, told: Callable[[], None]) -> None:
        self._told = told

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
        self._told()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._told()


def report_of(record: Any) -> dict[str, float]:
    return {"epoch": record["epoch"], "accuracy": record["validation"]["accuracy"]}


def find(study: Study, name: str) -> Trial:
    return next(outcome.trial for outcome in study.trials.outcomes() if outcome.trial.name == name)


def train_here(config: dict[str, Any], study_folder: str) -> None:
    """A trial of one process."""
    study = load(Path(study_folder))
    trial = find(study, config["trial"])
    run_trial(
        study.base, trial, study.trials, study.halving_of(trial), lambda record: ray_tune.report(report_of(record))
    )


def train_on_ranks(config: dict[str, Any], study_folder: str) -> None:
    """A trial of several ranks: a driver that starts them by Ray Train, and waits."""
    gpus = config["gpus"]
    resources = {"CPU": config["cpus"], **({"GPU": gpus} if gpus else {})}
    scaling = ray_train.ScalingConfig(config["workers"], use_gpu=gpus > 0, resources_per_worker=resources)
    passed_on: Any = TuneReportCallback()  # type: ignore[no-untyped-call]
    folder = str(Path(study_folder) / "ray-train")
    storage = ray_train.RunConfig(name=config["trial"], storage_path=folder, callbacks=[passed_on])
    TorchTrainer(
        train_rank, train_loop_config={**config, "study": study_folder}, scaling_config=scaling, run_config=storage
    ).fit()


def train_rank(config: dict[str, Any]) -> None:
    """One rank of a trial; the process group is Ray's."""
    study = load(Path(config["study"]))
    trial = find(study, config["trial"])
    run_trial(
        study.base, trial, study.trials, study.halving_of(trial), lambda record: ray_train.report(report_of(record))
    )
