"""Training curves: losses, loss weights, accuracy, learning rate and speed of one run, and several runs overlaid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from adadf_dist.method.losses import ramp_weights
from adadf_dist.report.comparison import group_by_config
from adadf_dist.report.figures.style import ACCENT, INK, SOFT, color, dash_pattern, format_epoch_axis, new_figure
from adadf_dist.report.run_reader import RunData


def plot_curves(run: RunData) -> Figure:
    """Plot the training curves of one run."""
    figure = new_figure(4.7)
    panels = figure.subplots(2, 3).ravel()
    plot_accuracy(panels[0], run)
    plot_losses(panels[1], run)
    plot_loss_weights(panels[2], run)
    plot_line(panels[3], run, 1e3 * run.values("learning_rate"), "Learning rate", "rate (10$^{-3}$)")
    plot_line(panels[4], run, run.values("images_per_s"), "Training speed", "images/s")
    plot_line(panels[5], run, 100 * run.values("data_wait_fraction"), "Waiting for data", "% of the epoch")
    return figure


def plot_accuracy(axes: Any, run: RunData) -> None:
    """Plot validation accuracy with its Wilson interval, and mark the selected epoch."""
    bands = np.array([record["validation"]["accuracy_interval"] for record in run.epochs])
    axes.fill_between(run.epoch_numbers, *(100 * bands.T), color=color(0), alpha=0.18, linewidth=0)
    axes.plot(run.epoch_numbers, 100 * run.values("accuracy"), color=color(0), **points(run), label="accuracy, 95% CI")
    mean = 100 * run.values("mean_class_accuracy")
    axes.plot(
        run.epoch_numbers, mean, color=color(1), linestyle=dash_pattern(1), **points(run), label="mean class accuracy"
    )
    best = run.best
    where = (best["epoch"], 100 * best["validation"]["accuracy"])
    axes.plot(*where, "o", markersize=7, markerfacecolor="none", markeredgecolor=INK, label="selected epoch")
    axes.set(title="Validation", ylabel="accuracy (%)")
    format_epoch_axis(axes, run.epoch_numbers)
    legend_below(axes)


def plot_losses(axes: Any, run: RunData) -> None:
    shown = {"total": "total (14)", "kl_divergence": "KL divergence (13)", "cross_entropy": "cross entropy (3)"}
    shown["rank_regularization"] = "rank regularization (9)"
    if run.config.loss.is_baseline:
        shown = {"cross_entropy": "cross entropy"}
    for number, (name, label) in enumerate(shown.items()):
        style = {"color": color(number), "linestyle": dash_pattern(number), "label": label}
        axes.plot(run.epoch_numbers, run.values(name), **style, **points(run))
    axes.set(title="Training losses", ylabel="loss (nats)")
    axes.set_ylim(bottom=0)
    format_epoch_axis(axes, run.epoch_numbers)
    legend_below(axes)


def plot_loss_weights(axes: Any, run: RunData) -> None:
    """Plot the loss weights (eq 15 and 16) over all configured epochs; epochs not yet finished are faint."""
    epochs = np.arange(1, run.config.epochs + 1)
    weights = [ramp_weights(int(epoch), run.config.loss.epoch_threshold) for epoch in epochs]
    done = len(run.epochs)
    for number, (name, label) in enumerate((("kl", "$w_{kl}$ (15), target"), ("ce", "$w_{ce}$ (16), auxiliary"))):
        values = [getattr(weight, name) for weight in weights]
        axes.plot(epochs, values, color=color(number), linestyle=dash_pattern(number), alpha=0.35)
        axes.plot(epochs[:done], values[:done], color=color(number), linestyle=dash_pattern(number), label=label)
    axes.axvline(run.config.loss.epoch_threshold, color=SOFT, linewidth=0.8, linestyle=":")
    axes.set(title="Loss weights", ylabel="weight", ylim=(0, 1.06))
    format_epoch_axis(axes, epochs)
    legend_below(axes)


def plot_line(axes: Any, run: RunData, values: Any, title: str, unit: str) -> None:
    axes.plot(run.epoch_numbers, values, color=ACCENT, **points(run))
    axes.set(title=title, ylabel=unit)
    axes.set_ylim(0, 1.08 * max(float(np.nanmax(values)), 1e-9) if np.isfinite(values).any() else 1)
    format_epoch_axis(axes, run.epoch_numbers)


def plot_runs(runs: Sequence[RunData]) -> Figure:
    """Plot several runs in the same axes. The color shows the configuration, the dash pattern the run."""
    figure = new_figure(2.7)
    panels = figure.subplots(1, 3)
    shown = (
        ("Validation accuracy", "accuracy (%)", "accuracy", 100),
        ("Mean class accuracy", "accuracy (%)", "mean_class_accuracy", 100),
        ("Validation cross entropy", "nats", "cross_entropy", 1),
    )
    longest = max((run.epoch_numbers for run in runs), key=len)
    for axes, (title, unit, name, factor) in zip(panels, shown, strict=True):
        for number, group in enumerate(group_by_config(runs)):
            for seed, run in enumerate(group):
                values = [factor * record["validation"][name] for record in run.epochs]
                style = {"color": color(number), "linestyle": dash_pattern(seed), "label": run.name}
                axes.plot(run.epoch_numbers, values, **style, **points(run))
        axes.set(title=title, ylabel=unit)
        format_epoch_axis(axes, longest)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(runs), 3), handlelength=2.4)
    return figure


def legend_below(axes: Any) -> None:
    """Place the legend below the axes, where no curve can cross it."""
    corner = {"loc": "upper left", "bbox_to_anchor": (-0.02, -0.27)}
    axes.legend(**corner, handlelength=1.8, borderaxespad=0, labelspacing=0.35)


def points(run: RunData) -> dict[str, Any]:
    """Return the marker style of a curve: one dot per epoch if there are few epochs, else no markers."""
    return {"marker": "o"} if len(run.epochs) <= 12 else {}
