"""One ambiguous face: what was said of it while the network learned (the paper's Figures 1, 5 and 6)."""

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
from adadf_dist.report.figures.style import SOFT, colour, format_epoch_axis, marker, new_figure
from adadf_dist.report.run_reader import RunData

AUXILIARY, FUSED, TARGET = range(3)
"""Places in the history's distributions of a listed face."""


class TrackedSample(NamedTuple):
    """A training face whose distributions were kept. E epochs, C classes."""

    key: str
    label: int
    """As trained."""
    distributions: NDArray[np.float64]
    """[E, 3, C]: auxiliary, fused, target; NaN in epochs that did not see it."""
    weights: NDArray[np.float64]
    """[E], w' of eq 11; NaN likewise."""
    votes: NDArray[np.float64] | None
    """[C], shares; None where nobody voted."""


def find_tracked_sample(run: RunData, key: str = "") -> TrackedSample | None:
    """The face called `key`, or the most ambiguous of those listed; None where the history lists none.

    Most ambiguous: the highest entropy of the votes; where there are none, of the last fused distribution.
    Raises `UserError` for a key that is not listed, with the nearest that is.
    """
    numbers = run.history[-1]["listed"] if run.history and run.faces is not None else np.zeros(0, np.int64)
    if not len(numbers) or run.faces is None:
        if key:
            raise UserError(
                f"--face {key}: {run.folder} kept no face's distributions; train with runtime.history_faces"
            )
        return None
    seen = np.sum([epoch["seen"][numbers] for epoch in run.history], axis=0) > 0
    if key:
        place = place_of(run, key, [str(run.faces.keys[number]) for number in numbers])
        if not seen[place]:
            raise UserError(
                f"--face {key}: no finished epoch has had it yet (data.sampler = {run.config.data.sampler})"
            )
        return listed_face(run, place)
    votes = None if run.faces.votes is None else run.faces.votes[numbers]
    if votes is None or not votes.any():
        ambiguity = entropy(np.nan_to_num(run.history[-1]["listed_distributions"][:, FUSED].astype(np.float64)))
    else:
        ambiguity = entropy(votes.astype(np.float64))
    return listed_face(run, int(np.argmax(np.where(seen, ambiguity, -1)))) if seen.any() else None


def place_of(run: RunData, key: str, keys: Sequence[str]) -> int:
    if key in keys:
        return keys.index(key)
    assert run.faces is not None
    if key in run.faces.keys:
        raise UserError(
            f"--face {key}: its distributions were not kept; train with --runtime.history_samples {key}, or take one "
            f"of the {len(keys)} that were, such as {keys[0]}"
        )
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.0)[0]
    raise UserError(f"--face {key}: no training face has this key; did you mean {near}?")


def listed_face(run: RunData, place: int) -> TrackedSample:
    assert run.faces is not None
    number = int(run.history[-1]["listed"][place])
    seen = np.array([epoch["seen"][number] > 0 for epoch in run.history])
    rows = np.where(seen[:, None, None], run.stack_history("listed_distributions")[:, place], np.nan)
    votes = None if run.faces.votes is None else run.faces.votes[number].astype(np.float64)
    shares = votes / votes.sum() if votes is not None and votes.any() else None
    weights = np.array([epoch["attention"][number] for epoch in run.history], dtype=np.float64)
    return TrackedSample(str(run.faces.keys[number]), int(run.faces.labels[number]), rows, weights, shares)


def entropy(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n], in nats, of rows [n, C] that are scaled to sum to 1."""
    shares = rows / np.maximum(rows.sum(axis=1, keepdims=True), 1e-12)
    found: NDArray[np.float64] = -(shares * np.log(np.where(shares > 0, shares, 1))).sum(axis=1)
    return found


def distribution_stages(run: RunData, face: TrackedSample) -> dict[str, NDArray[np.float64]]:
    """By title: what the face was called, thought to be, taught and predicted, in the last epoch that saw it."""
    last = int(np.flatnonzero(~np.isnan(face.distributions[:, 0, 0]))[-1])
    found = {"votes": face.votes} if face.votes is not None else {}
    found["label"] = np.eye(len(run.classes))[face.label]
    if run.config.loss.supervision != "one_hot":
        found["auxiliary (1)"] = face.distributions[last, AUXILIARY]
        found["class (5)"] = class_distribution(run, last, face.label)
        found["fused (12)"] = face.distributions[last, FUSED]
    found["target"] = face.distributions[last, TARGET]
    return found


def class_distribution(run: RunData, place: int, label: int) -> NDArray[np.float64]:
    """[C], what eq 12 had of a class in an epoch: what the one before had left."""
    if place:
        left: NDArray[np.float64] = run.history[place - 1]["class_distributions"][label].astype(np.float64)
        return left
    nothing = torch.zeros(len(run.classes), len(run.classes), dtype=torch.float64)
    commit = class_distributions(nothing, nothing[0], run.config.class_distributions)
    return np.asarray(commit.distributions[label], dtype=np.float64)


def face_figure(run: RunData, face: TrackedSample) -> Figure:
    """Above, the distributions of the last epoch; below, those that move, over epochs."""
    classes, shown = run.classes, distribution_stages(run, face)
    moving = {"Auxiliary (label distribution)": AUXILIARY, "Fused": FUSED, "Target (prediction)": TARGET}
    if run.config.loss.supervision == "one_hot":
        moving = {"Target (prediction)": TARGET}
    figure = new_figure(4.2)
    parts: Any = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    upper, lower = parts
    for part in parts:
        part.set_facecolor("none")
    places = np.arange(len(classes))
    for axes, (title, row) in zip(upper.subplots(1, len(shown), sharey=True), shown.items(), strict=True):
        axes.barh(places, row, color=[colour(number) for number in range(len(classes))], height=0.72)
        for place, value in enumerate(row):
            axes.text(
                min(value, 0.86) + 0.03 if value < 0.8 else value - 0.03,
                place,
                f"{value:.2f}".lstrip("0"),
                va="center",
                ha="left" if value < 0.8 else "right",
                fontsize=6.5,
                color="white" if value >= 0.8 else SOFT,
            )
        axes.set(title=title, xlim=(0, 1), ylim=(len(classes) - 0.5, -0.5))
        axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
        axes.set_yticks(places, classes)
        axes.tick_params(axis="y", length=0)
    panels = np.atleast_1d(lower.subplots(1, len(moving), sharey=True))
    for axes, (title, stage) in zip(panels, moving.items(), strict=True):
        for number, name in enumerate(classes):
            style = {"color": colour(number), "marker": marker(number), "label": name, "linewidth": 1.2}
            every = max(1, len(run.epochs) // 12)
            axes.plot(run.epoch_numbers, face.distributions[:, stage, number], **style, markevery=every)
        axes.set(title=title, ylim=(0, 1.02))
        format_epoch_axis(axes, run.epoch_numbers)
    panels[0].set_ylabel("description degree")
    handles, names = panels[0].get_legend_handles_labels()
    lower.legend(handles, names, loc="outside lower center", ncols=min(len(classes), 8), columnspacing=1.2)
    return figure
