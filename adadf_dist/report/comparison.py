"""Several runs beside each other: what was set differently, and what it made, seed by seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adadf_dist.config.load import flatten, matches_key, to_dict
from adadf_dist.data.identity import ALLOW_OTHER_DATA, SHOWN_DIGITS
from adadf_dist.errors import UserError
from adadf_dist.metrics.comparison import PairedDifference, Score, paired_difference
from adadf_dist.report.run_reader import RunData

NON_RECIPE_KEYS = (
    "out",
    "resume",
    "allow_other_data",
    "seed",
    "checkpoint.",
    "evaluation.",
    "data.shards",
    "data.cache",
    "data.cache_size_gb",
    "data.workers",
    "data.prefetch",
    "data.embedded_faces",
    "data.max_bad_faces",
    "runtime.timeout_s",
    "runtime.stop_every",
    "runtime.log_every",
    "runtime.tensorboard",
    "runtime.loggers",
    "runtime.profile",
    "runtime.history_samples",
    "runtime.history_faces",
)
"""Keys that do not make two runs two ways of training."""


class GroupComparison(NamedTuple):
    """One way of training against the first, on the seeds that both have."""

    name: str
    measure: str
    """`test` where every run of the pairs has one, else `validation`."""
    seeds: tuple[int, ...]
    first: tuple[float, ...]
    second: tuple[float, ...]
    difference: PairedDifference | None
    """None for fewer than two pairs."""


def recipe_values(run: RunData) -> dict[str, Any]:
    """The dataset, and what the run was told of what makes a way of training."""
    flat = {key: tuple(v) if isinstance(v, list) else v for key, v in flatten(to_dict(run.config))}
    for key, digest in (run.data["files"] if run.data is not None else {}).items():
        flat[key] = (
            f"{Path(str(flat[key])).name} ({digest[:SHOWN_DIGITS]})"  # the same file in another folder is the same
        )
    told = {key: value for key, value in flat.items() if not matches_key(key, NON_RECIPE_KEYS)}
    return {"dataset": run.facts["dataset"], **told}


def differing_keys(runs: Sequence[RunData]) -> dict[str, list[Any]]:
    """Keys whose values differ between runs, and each run's."""
    values = [recipe_values(run) for run in runs]
    return {key: [v[key] for v in values] for key in values[0] if len({repr(v[key]) for v in values}) > 1}


def group_by_config(runs: Sequence[RunData]) -> list[list[RunData]]:
    """The runs that differ by nothing but their seed together, in the order given."""
    groups: dict[str, list[RunData]] = {}
    for run in runs:
        groups.setdefault(repr(sorted(recipe_values(run).items())), []).append(run)
    return list(groups.values())


def score(run: RunData, measure: str) -> Score:
    """The selected epoch on `measure`, sample by sample where the run kept its predictions."""
    metrics = run.best["validation"] if measure == "validation" or run.result is None else run.result["test"]
    kept, correct = run.predictions(measure), None
    if kept is not None:
        right = kept.answers.predicted_labels == kept.faces.labels
        correct = right if abs(float(right.mean()) - metrics["accuracy"]) < 1e-6 else None  # else of another epoch
    return Score(float(metrics["accuracy"]), int(metrics["samples"]), correct)


def same_samples(runs: Sequence[RunData], measure: str) -> bool:
    """Whether the runs' stored predictions are of the same samples in the same order."""
    kept = [run.predictions(measure) for run in runs]
    keys = [answers.faces.keys for answers in kept if answers is not None]
    return len(keys) == len(runs) and all(np.array_equal(other, keys[0]) for other in keys)


def has_test_result(run: RunData) -> bool:
    return run.finished and run.result is not None and bool(run.result["test"])


def evaluation_signature(run: RunData) -> tuple[object, ...]:
    """What two runs must have in common for their accuracies to be of one task. Training faces may be dropped."""
    judged = (count for split, count in run.facts["faces"].items() if split != "train")
    return run.facts["dataset"], run.classes, *judged


def differently_evaluated(runs: Sequence[RunData]) -> str:
    """How the data that a run was evaluated on differs from the first run's, by digests; empty where none does."""
    for run in runs[1:]:
        if run.source is None or runs[0].source is None:
            continue
        for split in ("validation", "test"):
            first, second = (r.source.digests.get(split) for r in (runs[0], run) if r.source is not None)
            if first is not None and second is not None and first != second:
                return (
                    f"{run.folder}: was evaluated on {run.source.shards}, split {split} with digest "
                    f"{second[:SHOWN_DIGITS]}; {runs[0].folder} on {runs[0].source.shards} with digest "
                    f"{first[:SHOWN_DIGITS]}"
                )
    return ""


def check_comparable(runs: Sequence[RunData], allow_other_data: bool = False) -> None:
    """Raises `UserError` for runs of other faces than the first's, and for a seed that one way has twice."""
    for run in runs:
        if evaluation_signature(run) != evaluation_signature(runs[0]):
            what = "counts of faces" if run.facts["dataset"] == runs[0].facts["dataset"] else "faces"
            raise UserError(
                f"{run.folder}: is judged on other {what} than {runs[0].folder}, so their numbers do not compare; "
                "give each a report of its own"
            )
    if not allow_other_data and (difference := differently_evaluated(runs)):
        raise UserError(
            f"{difference}: their numbers do not compare; give each a report of its own, or {ALLOW_OTHER_DATA}"
        )
    for group in group_by_config(runs):
        by_seed: dict[int, RunData] = {}
        for run in group:
            other = by_seed.setdefault(run.config.seed, run)
            if other is not run:
                raise UserError(
                    f"{run.folder}: has the settings and the seed of {other.folder}; name one of the two, or pairs by "
                    "seed would be of either"
                )


def compare_groups(runs: Sequence[RunData]) -> list[GroupComparison]:
    """Every other way of training against the first, where they share seeds. Of runs that compare."""
    groups = group_by_config(runs)
    found = []
    first = {run.config.seed: run for run in groups[0]}
    others = [({run.config.seed: run for run in group}, group[0]) for group in groups[1:]]
    for second, run in others:
        seeds = tuple(sorted(first.keys() & second.keys()))
        if not seeds:
            continue
        both = [way[seed] for way in (first, second) for seed in seeds]
        measure = "test" if all(map(has_test_result, both)) else "validation"
        before, after = ([score(way[seed], measure) for seed in seeds] for way in (first, second))
        if not same_samples(both, measure):
            before, after = ([one._replace(correct=None) for one in scores] for scores in (before, after))
        difference = paired_difference(before, after, len(others)) if len(seeds) > 1 else None
        first_values, second_values = (tuple(one.accuracy for one in scores) for scores in (before, after))
        found.append(
            GroupComparison(
                describe_difference(groups[0][0], run), measure, seeds, first_values, second_values, difference
            )
        )
    return found


def describe_difference(first: RunData, second: RunData) -> str:
    """How the second was told otherwise than the first."""
    return ", ".join(
        f"{key} = {values[1]} (was {values[0]})" for key, values in differing_keys([first, second]).items()
    )
