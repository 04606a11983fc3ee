"""Figure of one ambiguous sample: its distributions during training (Figures 1, 5 and 6 of the paper)."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from adadf_dist.errors import UserError
from adadf_dist.method.class_distributions import class_distributions
from adadf_dist.report.figures.style import SOFT, add_class_legend, color, format_epoch_axis, new_figure, plot_classes
from adadf_dist.report.run_reader import RunData

AUXILIARY, FUSED, TARGET = range(3)
"""Indices into the recorded distributions of a tracked sample."""


class TrackedSample(NamedTuple):
    """A training sample whose distributions over C classes were recorded in each of E epochs."""

    key: str
    label: int
    """Label as used in training."""
    distributions: NDArray[np.float64]
    """[E, 3, C], auxiliary, fused and target distributions; NaN in epochs that did not draw the sample."""
    weights: NDArray[np.float64]
    """[E], attention weights w' (eq 11); NaN in epochs that did not draw the sample."""
    votes: NDArray[np.float64] | None
    """[C], fraction of annotator votes for each class; None if the sample has no votes."""


def find_tracked_sample(run: RunData, key: str = "") -> TrackedSample | None:
    """Return the tracked sample `key` or, if `key` is empty, the most ambiguous one; None if there is none.

    The most ambiguous sample has the highest entropy of its votes or, without votes, of its last fused distribution.
    Raises `UserError`, with a suggestion, if `key` is not a tracked sample.
    """
    numbers = run.history[-1]["tracked_samples"] if run.history and run.samples is not None else np.zeros(0, np.int64)
    if not len(numbers) or run.samples is None:
        if key:
            raise UserError(
                f"--sample {key}: {run.folder} tracked no samples; train with runtime.num_tracked_samples set"
            )
        return None
    sampled = np.sum([epoch["seen"][numbers] for epoch in run.history], axis=0) > 0
    if key:
        index = find_index(run, key, [str(run.samples.keys[number]) for number in numbers])
        if not sampled[index]:
            raise UserError(
                f"--sample {key}: not sampled in any finished epoch yet (data.sampler = {run.config.data.sampler})"
            )
        return load_tracked_sample(run, index)
    votes = None if run.samples.votes is None else run.samples.votes[numbers]
    if votes is None or not votes.any():
        ambiguity = entropy(np.nan_to_num(run.history[-1]["tracked_distributions"][:, FUSED].astype(np.float64)))
    else:
        ambiguity = entropy(votes.astype(np.float64))
    return load_tracked_sample(run, int(np.argmax(np.where(sampled, ambiguity, -1)))) if sampled.any() else None


def find_index(run: RunData, key: str, keys: Sequence[str]) -> int:
    if key in keys:
        return keys.index(key)
    assert run.samples is not None
    if key in run.samples.keys:
        raise UserError(
            f"--sample {key}: not a tracked sample; train with --runtime.tracked_samples {key}, or choose one of the "
            f"{len(keys)} tracked samples, such as {keys[0]}"
        )
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.0)[0]
    raise UserError(f"--sample {key}: unknown sample key; did you mean {near}?")


def load_tracked_sample(run: RunData, index: int) -> TrackedSample:
    assert run.samples is not None
    number = int(run.history[-1]["tracked_samples"][index])
    sampled = np.array([epoch["seen"][number] > 0 for epoch in run.history])
    rows = np.where(sampled[:, None, None], run.stack_history("tracked_distributions")[:, index], np.nan)
    votes = None if run.samples.votes is None else run.samples.votes[number].astype(np.float64)
    fractions = votes / votes.sum() if votes is not None and votes.any() else None
    weights = np.array([epoch["attention"][number] for epoch in run.history], dtype=np.float64)
    return TrackedSample(str(run.samples.keys[number]), int(run.samples.labels[number]), rows, weights, fractions)


def entropy(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the entropy of each row in nats, [n], after normalizing the rows [n, C] to sum to 1."""
    fractions = rows / np.maximum(rows.sum(axis=1, keepdims=True), 1e-12)
    found: NDArray[np.float64] = -(fractions * np.log(np.where(fractions > 0, fractions, 1))).sum(axis=1)
    return found


def distribution_stages(run: RunData, sample: TrackedSample) -> dict[str, NDArray[np.float64]]:
    """Return distributions by title: the sample's votes and label, then its last recorded targets and prediction."""
    last = int(np.flatnonzero(~np.isnan(sample.distributions[:, 0, 0]))[-1])
    found = {"votes": sample.votes} if sample.votes is not None else {}
    found["label"] = np.eye(len(run.classes))[sample.label]
    if not run.config.loss.is_baseline:
        found["auxiliary (1)"] = sample.distributions[last, AUXILIARY]
        found["class (5)"] = class_distribution(run, last, sample.label)
        found["fused (12)"] = sample.distributions[last, FUSED]
    found["target"] = sample.distributions[last, TARGET]
    return found


def class_distribution(run: RunData, index: int, label: int) -> NDArray[np.float64]:
    """Return the class distribution, [C], that eq 12 used in an epoch: the one computed after the previous epoch."""
    if index:
        previous: NDArray[np.float64] = run.history[index - 1]["class_distributions"][label].astype(np.float64)
        return previous
    zeros = torch.zeros(len(run.classes), len(run.classes), dtype=torch.float64)
    initial = class_distributions(zeros, zeros[0], run.config.class_distributions)
    return np.asarray(initial.distributions[label], dtype=np.float64)


def plot_tracked_sample(run: RunData, sample: TrackedSample) -> Figure:
    """Plot the last recorded distributions of the sample (top), and how they changed over the epochs (bottom)."""
    classes, shown = run.classes, distribution_stages(run, sample)
    moving = {"Auxiliary (label distribution)": AUXILIARY, "Fused": FUSED, "Target (prediction)": TARGET}
    if run.config.loss.is_baseline:
        moving = {"Target (prediction)": TARGET}
    figure = new_figure(4.2)
    parts: Any = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    upper, lower = parts
    for part in parts:
        part.set_facecolor("none")
    positions = np.arange(len(classes))
    for axes, (title, row) in zip(upper.subplots(1, len(shown), sharey=True), shown.items(), strict=True):
        axes.barh(positions, row, color=[color(number) for number in range(len(classes))], height=0.72)
        for position, value in enumerate(row):
            axes.text(
                min(value, 0.86) + 0.03 if value < 0.8 else value - 0.03,
                position,
                f"{value:.2f}".lstrip("0"),
                va="center",
                ha="left" if value < 0.8 else "right",
                fontsize=6.5,
                color="white" if value >= 0.8 else SOFT,
            )
        axes.set(title=title, xlim=(0, 1), ylim=(len(classes) - 0.5, -0.5))
        axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
        axes.set_yticks(positions, classes)
        axes.tick_params(axis="y", length=0)
    panels = np.atleast_1d(lower.subplots(1, len(moving), sharey=True))
    for axes, (title, stage) in zip(panels, moving.items(), strict=True):
        plot_classes(axes, run.epoch_numbers, sample.distributions[:, stage], classes)
        axes.set(title=title, ylim=(0, 1.02))
        format_epoch_axis(axes, run.epoch_numbers)
    panels[0].set_ylabel("description degree")
    add_class_legend(lower, panels[0])
    return figure
