"""Compare several runs: differing settings and accuracy differences, paired by seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adadf_dist.config.fields import Role
from adadf_dist.config.keys import flatten, keys_with, upgrade_keys
from adadf_dist.config.load import to_dict
from adadf_dist.data.identity import ALLOW_OTHER_DATA, SHOWN_DIGITS
from adadf_dist.errors import UserError
from adadf_dist.metrics.intervals import PairedDifference, Score, paired_difference
from adadf_dist.report.run_reader import RunData


class GroupComparison(NamedTuple):
    """Comparison of a configuration with the first run's, for the seeds that both were trained with."""

    name: str
    measure: str
    """`test` if all compared runs have a test result, else `validation`."""
    seeds: tuple[int, ...]
    first: tuple[float, ...]
    second: tuple[float, ...]
    difference: PairedDifference | None
    """Paired difference in accuracy; None if the two configurations share fewer than two seeds."""


def recipe_values(run: RunData) -> dict[str, Any]:
    """Return a run's dataset and settings, except operational ones such as the seed."""
    flat = {key: tuple(v) if isinstance(v, list) else v for key, v in flatten(to_dict(run.config))}
    for key, digest in upgrade_keys(run.data["files"] if run.data is not None else {}).items():
        flat[key] = f"{Path(str(flat[key])).name} ({str(digest)[:SHOWN_DIGITS]})"  # its folder does not matter
    text = {key: value for key, value in flat.items() if key not in keys_with(Role.OPERATIONAL)}
    return {"dataset": run.info["dataset"], **text}


def differing_keys(runs: Sequence[RunData]) -> dict[str, list[Any]]:
    """Return the settings that differ between runs, each with its value in every run."""
    values = [recipe_values(run) for run in runs]
    return {key: [v[key] for v in values] for key in values[0] if len({repr(v[key]) for v in values}) > 1}


def group_by_config(runs: Sequence[RunData]) -> list[list[RunData]]:
    """Group runs that differ only in their seed. Groups and their runs keep the given order."""
    groups: dict[str, list[RunData]] = {}
    for run in runs:
        groups.setdefault(repr(sorted(recipe_values(run).items())), []).append(run)
    return list(groups.values())


def score(run: RunData, measure: str) -> Score:
    """Return the accuracy of the selected epoch, and the correctness of each sample if predictions were saved."""
    metrics = (run.test if measure == "test" else None) or run.best["validation"]
    saved, correct = run.predictions(measure), None
    if saved is not None:
        correct = saved.answers.predicted_labels == saved.faces.labels
        if abs(float(correct.mean()) - metrics["accuracy"]) >= 1e-6:  # predictions of another epoch
            correct = None
    return Score(float(metrics["accuracy"]), int(metrics["samples"]), correct)


def same_samples(runs: Sequence[RunData], measure: str) -> bool:
    """Return whether the saved predictions of all runs cover the same samples in the same order."""
    keys = [saved.faces.keys for saved in (run.predictions(measure) for run in runs) if saved is not None]
    return len(keys) == len(runs) and all(np.array_equal(other, keys[0]) for other in keys)


def evaluation_signature(run: RunData) -> tuple[object, ...]:
    """Return the dataset, classes and evaluation split sizes, which must be equal for runs to be comparable."""
    counts = (count for split, count in run.info["faces"].items() if split != "train")
    return run.info["dataset"], run.classes, *counts


def differently_evaluated(runs: Sequence[RunData]) -> str:
    """Describe a run evaluated on data with another digest than the first run's; return "" if there is none."""
    reference = runs[0].source
    for run in runs[1:]:
        source = run.source
        if source is None or reference is None:
            continue
        for split in ("validation", "test"):
            first, second = reference.digests.get(split), source.digests.get(split)
            if first is not None and second is not None and first != second:
                return (
                    f"{run.folder}: was evaluated on split {split} of {source.shards} (digest "
                    f"{second[:SHOWN_DIGITS]}), but {runs[0].folder} on that of {reference.shards} (digest "
                    f"{first[:SHOWN_DIGITS]})"
                )
    return ""


def check_comparable(runs: Sequence[RunData], allow_other_data: bool = False) -> None:
    """Raise `UserError` if a run was evaluated on different data, or has the same settings and seed as another."""
    for run in runs:
        if evaluation_signature(run) != evaluation_signature(runs[0]):
            what = "number of samples" if run.info["dataset"] == runs[0].info["dataset"] else "dataset"
            raise UserError(
                f"{run.folder}: was evaluated on a different {what} than {runs[0].folder}; not comparable, so report "
                "the runs separately"
            )
    if not allow_other_data and (difference := differently_evaluated(runs)):
        raise UserError(f"{difference}; not comparable: report the runs separately, or pass {ALLOW_OTHER_DATA}")
    for group in group_by_config(runs):
        by_seed: dict[int, RunData] = {}
        for run in group:
            other = by_seed.setdefault(run.config.seed, run)
            if other is not run:
                raise UserError(
                    f"{run.folder}: has the same settings and seed as {other.folder}; pass only one of the two"
                )


def compare_groups(runs: Sequence[RunData]) -> list[GroupComparison]:
    """Compare the first run's configuration with all others that share seeds with it. Call `check_comparable` first."""
    groups = group_by_config(runs)
    comparisons = []
    first = {run.config.seed: run for run in groups[0]}
    for group in groups[1:]:
        second = {run.config.seed: run for run in group}
        seeds = tuple(sorted(first.keys() & second.keys()))
        if not seeds:
            continue
        both = [by_seed[seed] for by_seed in (first, second) for seed in seeds]
        measure = "test" if all(run.test for run in both) else "validation"
        scores = [score(run, measure) for run in both]
        if not same_samples(both, measure):
            scores = [one._replace(correct=None) for one in scores]
        before, after = scores[: len(seeds)], scores[len(seeds) :]
        difference = paired_difference(before, after, len(groups) - 1) if len(seeds) > 1 else None
        name = describe_difference(groups[0][0], group[0])
        old, new = (tuple(one.accuracy for one in side) for side in (before, after))
        comparisons.append(GroupComparison(name, measure, seeds, old, new, difference))
    return comparisons


def describe_difference(first: RunData, second: RunData) -> str:
    """Describe the settings of the second run that differ from the first run's."""
    return ", ".join(
        f"{key} = {values[1]} (was {values[0]})" for key, values in differing_keys([first, second]).items()
    )
