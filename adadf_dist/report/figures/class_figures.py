"""Per-class figures: confusion matrices, class distributions, thresholds and attention weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from adadf_dist.report.figures.style import (
    ACCENT,
    INK,
    LINE,
    SOFT,
    WIDTH,
    add_class_legend,
    color,
    format_epoch_axis,
    new_figure,
    plot_classes,
)
from adadf_dist.report.run_reader import RunData

DARK_CELL = 0.55
"""A confusion matrix cell with a fraction above this is dark enough for white text."""


def plot_confusion(matrices: dict[str, NDArray[np.int64]], classes: Sequence[str]) -> Figure:
    """Plot confusion matrices side by side, as row percentages; row labels include the number of samples."""
    side = WIDTH / 2
    figure = new_figure(side + 0.35, side * len(matrices) if len(matrices) > 1 else side + 0.9)
    panels = np.atleast_1d(figure.subplots(1, len(matrices)))
    for axes, (title, counts) in zip(panels, matrices.items(), strict=True):
        totals = counts.sum(axis=1)
        fractions = counts / np.maximum(totals, 1)[:, None]
        draw_heatmap(axes, fractions)
        for row, column in np.ndindex(*fractions.shape):
            tone = "white" if fractions[row, column] > DARK_CELL else INK
            text = f"{100 * fractions[row, column]:.0f}" if counts[row, column] else "·"
            axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=tone)
        names = [f"{name} ({total})" for name, total in zip(classes, totals, strict=True)]
        axes.set_xticks(range(len(classes)), classes, rotation=40, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(classes)), names)
        axes.set(title=title, xlabel="predicted (% of the row)", ylabel="true class (samples)")
    return figure


def draw_heatmap(axes: Any, fractions: NDArray[np.float64]) -> None:
    """Plot a matrix of values in [0, 1] as squares of a single color, using each value as the opacity."""
    rows, columns = fractions.shape
    for row, column in np.ndindex(rows, columns):
        patch = axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1))
        patch.set(facecolor=ACCENT, alpha=float(np.clip(fractions[row, column], 0, 1)), linewidth=0)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set(visible=True, color=LINE)


def plot_distributions(run: RunData) -> Figure:
    """Plot the class distributions after the last epoch, one panel per class (Figure 4 of the paper)."""
    classes, last = run.classes, run.history[-1]
    columns = min(4, len(classes))
    rows = math.ceil(len(classes) / columns)
    figure = new_figure(1.55 * rows + 0.3)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    positions = np.arange(len(classes))
    for number, axes in enumerate(panels.ravel()):
        if number >= len(classes):
            axes.set_visible(False)
            continue
        met = bool(last["class_threshold_met"][number])
        tones = [color(number) if position == number else SOFT for position in positions]
        bars = axes.bar(positions, last["class_distributions"][number], color=tones, width=0.72)
        for bar in () if met else bars:
            bar.set(fill=False, edgecolor=bar.get_facecolor(), linewidth=0.9, hatch="/////")
        axes.axhline(run.config.class_distributions.threshold, color=INK, linewidth=0.7, linestyle=":")
        axes.set_title(classes[number])
        axes.set(ylim=(0, 1))
        axes.set_xticks(positions, classes, rotation=50, ha="right", rotation_mode="anchor")
        axes.tick_params(axis="x", length=0)
        axes.plot(positions, last["class_means"][number], "o", color=INK, markersize=2.4)
        axes.grid(axis="y")
        if number % columns == 0:
            axes.set_ylabel("description degree")
    handles = [
        Patch(facecolor=SOFT, label="class mean used"),
        Patch(fill=False, edgecolor=SOFT, hatch="/////", label="threshold distribution (7) used"),
        Line2D([], [], color=INK, marker="o", linestyle="", markersize=2.4, label="class mean (4)"),
        Line2D([], [], color=INK, linestyle=":", linewidth=0.7, label="threshold t"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def plot_thresholds(run: RunData) -> Figure:
    """Plot, over the epochs, each class's mean probability for its own samples, and whether it met the threshold."""
    classes, met = run.classes, run.stack_history("class_threshold_met") > 0
    own = np.diagonal(run.stack_history("class_means"), axis1=1, axis2=2)
    figure = new_figure(2.7)
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    plot_classes(left, run.epoch_numbers, own, classes)
    left.axhline(run.config.class_distributions.threshold, color=INK, linewidth=0.8, linestyle=":")
    left.annotate(
        "t",
        (1, run.config.class_distributions.threshold),
        xycoords=("axes fraction", "data"),
        xytext=(2, 0),
        textcoords="offset points",
        va="center",
        style="italic",
    )
    left.set(title="Class mean (4), own class", ylabel="description degree", ylim=(0, 1))
    format_epoch_axis(left, run.epoch_numbers)
    for row, column in np.ndindex(*met.T.shape):
        tone = color(row) if met[column, row] else LINE
        right.add_patch(
            Rectangle((float(run.epoch_numbers[column]) - 0.46, row - 0.4), 0.92, 0.8, facecolor=tone, linewidth=0)
        )
    right.set_yticks(range(len(classes)), classes)
    right.set(title="Threshold met", ylim=(len(classes) - 0.5, -0.5))
    format_epoch_axis(right, run.epoch_numbers)
    right.set_xlim(run.epoch_numbers[0] - 0.5, run.epoch_numbers[-1] + 0.5)
    right.grid(visible=False)
    right.tick_params(axis="y", length=0)
    right.spines["left"].set_visible(False)
    add_class_legend(figure, left)
    return figure


def plot_attention(run: RunData) -> Figure:
    """Plot the attention weights w' (eq 11) by class: all samples in the last epoch, and the mean in every epoch."""
    assert run.samples is not None
    classes, labels = run.classes, run.samples.labels
    last = run.history[-1]["attention"].astype(np.float64)
    figure = new_figure(2.7)
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    groups = [last[(labels == number) & ~np.isnan(last)] for number in range(len(classes))]
    for number, group in enumerate(groups):
        if len(group) > 1 and group.std() > 0:
            parts = left.violinplot([group], [number], widths=0.85, showextrema=False, points=60)
            parts["bodies"][0].set(facecolor=color(number), alpha=0.45, linewidth=0)
        if len(group):
            low, middle, high = np.quantile(group, (0.25, 0.5, 0.75))
            left.vlines(number, low, high, color=color(number), linewidth=3.5)
            left.plot(number, middle, "o", color=INK, markersize=3.5)
    left.set_xticks(range(len(classes)), classes, rotation=40, ha="right", rotation_mode="anchor")
    left.axhline(run.config.loss.lambda_min, color=SOFT, linewidth=0.7, linestyle=":")
    left.set(
        title=f"Epoch {run.epoch_numbers[-1]}: samples, quartiles, median", ylabel="attention weight w'", ylim=(0, 1.03)
    )
    left.tick_params(axis="x", length=0)
    left.grid(axis="y")
    means = np.array(
        [class_means(epoch["attention"].astype(np.float64), labels, len(classes)) for epoch in run.history]
    )
    plot_classes(right, run.epoch_numbers, means, classes)
    right.set(title="Mean over epochs", ylabel="mean attention weight w'")
    format_epoch_axis(right, run.epoch_numbers)
    add_class_legend(figure, right)
    return figure


def class_means(values: NDArray[np.float64], labels: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """Return the mean value of each class, [C], ignoring NaN in the sample values, [S]; NaN for an empty class."""
    valid = ~np.isnan(values)
    counts = np.bincount(labels[valid], minlength=classes)
    sums = np.bincount(labels[valid], weights=values[valid], minlength=classes)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
