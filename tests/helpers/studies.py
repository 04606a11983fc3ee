"""Handmade studies: folders as a search writes them, without training."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from adadf_dist.config.schema import Config
from tune.study.asha import AshaSchedule
from tune.study.space import Space, read_domain
from tune.study.study import SearchOptions, Study, start
from tune.study.trial import Status, Trial

SPACE: dict[str, dict[str, object]] = {
    "loss.lambda_min": {"uniform": [0.0, 0.5]},
    "optimizer.lr": {"loguniform": [1e-4, 1e-2]},
    "loss.epoch_threshold": {"choice": [10, 1, 5]},
    "optimizer.schedule": {"choice": ["exponential", "cosine"]},
    "optimizer.warmup_steps": {"choice": [10, 100], "when": {"optimizer.schedule": "cosine"}},
}
HALVING = AshaSchedule(grace=2, factor=3, epochs=4)


def make_study(
    folder: Path,
    space: Mapping[str, Mapping[str, object]],
    trials: int = 40,
    seeds: int = 3,
    halving: AshaSchedule | None = None,
) -> Study:
    base = replace(Config(), epochs=halving.epochs if halving else 4)
    options = SearchOptions(seeds=seeds, trials=trials, finalists=2, halving=halving)
    domains = {key: read_domain("by hand", key, content) for key, content in space.items()}
    return start(Study(folder, base, Space("by hand", domains), options), resume=False)


def put(
    study: Study,
    trial: Trial,
    accuracies: Sequence[float],
    status: Status = "finished",
    error: str = "",
    test: float | None = None,
) -> None:
    """Write the trial's folder as if it had these accuracies, epoch by epoch."""
    study.trials.finish(trial, status, error)
    folder = study.trials.path_of(trial)
    lines = [
        json.dumps({"kind": "epoch", "epoch": epoch, "validation": metrics_of(accuracy)})
        for epoch, accuracy in enumerate(accuracies, start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    if test is not None:
        (folder / "result.json").write_text(json.dumps({"test": metrics_of(test)}))


def metrics_of(accuracy: float) -> dict[str, object]:
    """Metrics of a split so large that only the seeds add noise."""
    return {"accuracy": accuracy, "mean_class_accuracy": accuracy - 0.01, "samples": 10**13}


def searched(study: Study, halted: Sequence[int] = (), failed: Sequence[int] = ()) -> None:
    """Trials of the search whose accuracy depends on the learning rate alone; halted ones lack two epochs."""
    noise = np.random.default_rng(5)
    put(study, study.default(), [0.3, 0.4, 0.5, 0.6])
    for number in range(1, study.options.trials + 1):
        trial = study.sampled(number)
        best = 0.8 - 0.1 * abs(math.log10(study.full_values(trial)["optimizer.lr"]) + 3) + 0.005 * noise.random()
        if number in failed:
            put(study, trial, [], "failed", "loss: is not finite <b>at</b> step 3")
        elif number in halted:
            put(study, trial, [best - 0.2, best - 0.1], "pruned")
        else:
            put(study, trial, [best - 0.2, best - 0.1, best, best - 0.05])
