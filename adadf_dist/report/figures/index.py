"""List of all figures in a report, with their captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from adadf_dist.config.schema import ClassDistributionConfig
from adadf_dist.report.figures.class_figures import (
    plot_attention,
    plot_confusion,
    plot_distributions,
    plot_thresholds,
)
from adadf_dist.report.figures.curves import plot_curves, plot_runs
from adadf_dist.report.figures.tracked_sample import TrackedSample, plot_tracked_sample
from adadf_dist.report.figures.tsne import FEWEST_POINTS, MOST_POINTS, plot_features
from adadf_dist.report.run_reader import RunData


class FigureSpec(NamedTuple):
    name: str
    """Base name of the figure's files, and its HTML id on the page."""
    title: str
    make: Callable[[], Figure]
    caption: str


def list_figures(runs: Sequence[RunData], sample: TrackedSample | None) -> Iterator[FigureSpec]:
    """Yield the figures of the first run, and figures that compare the runs if there are several."""
    run = runs[0]
    if len(runs) > 1:
        yield FigureSpec("runs", "Runs compared", lambda: plot_runs(runs), "Validation after each epoch.")
    is_baseline = run.config.loss.is_baseline
    yield FigureSpec(
        "curves",
        "Training",
        lambda: plot_curves(run),
        "Mean over the steps of each epoch, and validation after it. Numbers in parentheses: equations of the paper. "
        f"Dotted: the epoch threshold ({run.config.loss.epoch_threshold}).",
    )
    plot = partial(plot_confusion, confusion_matrices(run), run.classes)
    yield FigureSpec("confusion", "Confusion", plot, confusion_caption(run))
    if run.history and not is_baseline:
        yield FigureSpec(
            "class_distributions",
            "Class distributions",
            lambda: plot_distributions(run),
            f"After epoch {run.epoch_numbers[-1]} (eq 5; Figure 4 of the paper). On the page, the slider "
            "below shows every epoch.",
        )
        yield FigureSpec(
            "thresholds",
            "Thresholds",
            lambda: plot_thresholds(run),
            f"t = {format_threshold(run.config.class_distributions)}. A class with its mean below t is trained on its "
            "threshold distribution instead.",
        )
    if run.history and run.samples is not None and run.config.loss.supervision == "fused":
        yield FigureSpec(
            "attention",
            "Attention weights",
            lambda: plot_attention(run),
            "Mean w' (eq 11) of each training sample over the epoch. High: its target weights the class distribution "
            "more, and its own label distribution less (eq 12).",
        )
    yield from tsne_figures(runs)
    if sample is not None:
        plot = partial(plot_tracked_sample, run, sample)
        yield FigureSpec("face", "An ambiguous sample", plot, sample_caption(run, sample))


def confusion_matrices(run: RunData) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
    """Return the selected epoch's confusion matrices by title: validation, and test if it was evaluated."""
    found = {f"Validation, epoch {run.best['epoch']}": np.array(run.best["validation"]["confusion"])}
    if run.test:
        found["Test, same epoch"] = np.array(run.test["confusion"])
    return found


def confusion_caption(run: RunData) -> str:
    text = "Predictions of the selected epoch's model (target branch)."
    return text if run.finished else f"{text} The test split is evaluated when the run ends."


def tsne_figures(runs: Sequence[RunData]) -> Iterator[FigureSpec]:
    """Yield a t-SNE figure of the first run's features and of one other run's, preferably the single-label baseline."""

    def by_supervision(run: RunData) -> tuple[bool, bool]:
        supervision = run.config.loss.supervision
        return supervision == runs[0].config.loss.supervision, supervision != "one_hot"

    others = sorted(runs[1:], key=by_supervision)
    for split in ("test", "validation"):
        saved = runs[0].predictions(split)
        if saved is None or len(saved.features) < FEWEST_POINTS:
            continue
        shown = {format_title(runs[0]): saved}
        for other in others:
            second = other.predictions(split)
            if second is not None and len(second.features) >= FEWEST_POINTS:
                shown[format_title(other)] = second
                break
        count = min(len(saved.features), MOST_POINTS)
        yield FigureSpec(
            "features",
            "Features",
            cache(partial(plot_features, shown)),  # takes seconds; shared by the page and the figure folder
            f"t-SNE (PCA initialization, fixed seed) of the target branch's features of {count:,} {split} samples "
            "(Figure 3 of the paper). Cluster sizes and distances between clusters are not meaningful.",
        )
        return


def format_threshold(config: ClassDistributionConfig) -> str:
    if not config.relative_threshold:
        return f"{config.threshold:g}"
    return f"{config.threshold:g}, or {config.relative_threshold:g} times the mean of all classes if that is lower"


def format_title(run: RunData) -> str:
    words = {"fused": "Ada-DF", "label": "label distributions only", "class": "class distributions only"}
    words["votes"] = "votes only"
    return f"{words.get(run.config.loss.supervision, 'single-label baseline')}: {run.name}"


def sample_caption(run: RunData, sample: TrackedSample) -> str:
    weights = sample.weights[~np.isnan(sample.weights)]
    text = f"Training sample {sample.key}, labeled {run.classes[sample.label]}"
    if run.config.loss.supervision == "fused" and len(weights):
        text += f"; w' = {weights[-1]:.2f} when last sampled"
    return f"{text}. Top: distributions in the last epoch that sampled it. Bottom: over epochs (Figures 1, 5, 6)."
