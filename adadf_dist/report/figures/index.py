"""List of all figures of a report, with captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from adadf_dist.report.figures.class_figures import attention, confusion, distributions, thresholds
from adadf_dist.report.figures.curves import curves, overlay
from adadf_dist.report.figures.tracked_sample import TrackedSample, face_figure
from adadf_dist.report.figures.tsne import FEWEST_POINTS, MOST_POINTS, feature_map
from adadf_dist.report.run_reader import RunData


class FigureSpec(NamedTuple):
    name: str
    """Base name of its files and HTML id in the page."""
    title: str
    make: Callable[[], Figure]
    caption: str


def list_figures(runs: Sequence[RunData], face: TrackedSample | None) -> Iterator[FigureSpec]:
    """Yield the figures of the first run, and overlays if there are several runs."""
    run = runs[0]
    if len(runs) > 1:
        yield FigureSpec("runs", "Runs compared", lambda: overlay(runs), "Validation after each epoch.")
    one_hot = run.config.loss.supervision == "one_hot"
    yield FigureSpec(
        "curves",
        "Training",
        lambda: curves(run),
        "Mean over the steps of each epoch, and validation after it. Numbers in parentheses: equations of the paper. "
        f"Dotted: the epoch threshold ({run.config.loss.epoch_threshold}).",
    )
    yield FigureSpec("confusion", "Confusion", lambda: confusion(matrices(run), run.classes), confusion_caption(run))
    if run.history and not one_hot:
        yield FigureSpec(
            "class_distributions",
            "Class distributions",
            lambda: distributions(run),
            f"After epoch {run.epoch_numbers[-1]} (eq 5; Figure 4 of the paper). On the page, below: by epoch.",
        )
        yield FigureSpec(
            "thresholds",
            "Thresholds",
            lambda: thresholds(run),
            f"t = {run.config.class_distributions.threshold:g}. A class with its mean below t is trained on its "
            "threshold distribution instead.",
        )
    if run.history and run.faces is not None and run.config.loss.supervision == "fused":
        yield FigureSpec(
            "attention",
            "Attention weights",
            lambda: attention(run),
            "Mean w' (eq 11) of each training sample over the epoch. High: its target weights the class distribution "
            "more, and its own label distribution less (eq 12).",
        )
    yield from tsne_figures(runs)
    if face is not None:
        yield FigureSpec("face", "An ambiguous sample", lambda: face_figure(run, face), sample_caption(run, face))


def matrices(run: RunData) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
    """Return confusion matrices by title: validation of the selected epoch, and test if evaluated."""
    found = {f"Validation, epoch {run.best['epoch']}": np.array(run.best["validation"]["confusion"])}
    if run.finished and run.result is not None and run.result["test"]:
        found["Test, same epoch"] = np.array(run.result["test"]["confusion"])
    return found


def confusion_caption(run: RunData) -> str:
    text = "The selected epoch's model, target branch."
    return text if run.finished else f"{text} The test split is evaluated when the run ends."


def tsne_figures(runs: Sequence[RunData]) -> Iterator[FigureSpec]:
    """Yield the features of the first run next to those of a run with other supervision, preferably a baseline."""

    def kinship(run: RunData) -> tuple[bool, bool]:
        taught = run.config.loss.supervision
        return taught == runs[0].config.loss.supervision, taught != "one_hot"

    others = sorted(runs[1:], key=kinship)
    for split in ("test", "validation"):
        recorded = runs[0].predictions(split)
        if recorded is None or len(recorded.features) < FEWEST_POINTS:
            continue
        shown = {title_of(runs[0]): recorded}
        for other in others:
            second = other.predictions(split)
            if second is not None and len(second.features) >= FEWEST_POINTS:
                shown[title_of(other)] = second
                break
        faces = min(len(recorded.features), MOST_POINTS)
        yield FigureSpec(
            "features",
            "Features",
            cache(partial(feature_map, shown)),  # takes seconds; shared by the page and the figure folder
            f"t-SNE (PCA initialization, fixed seed) of the target branch's features of {faces:,} {split} samples "
            "(Figure 3 of the paper). Cluster sizes and distances between clusters are not meaningful.",
        )
        return


def title_of(run: RunData) -> str:
    words = {"fused": "Ada-DF", "label": "label distributions only", "class": "class distributions only"}
    return f"{words.get(run.config.loss.supervision, 'single-label baseline')}: {run.name}"


def sample_caption(run: RunData, face: TrackedSample) -> str:
    weights = face.weights[~np.isnan(face.weights)]
    text = f"Training sample {face.key}, labeled {run.classes[face.label]}"
    if run.config.loss.supervision == "fused" and len(weights):
        text += f"; w' = {weights[-1]:.2f} when last sampled"
    return f"{text}. Top: distributions in the last epoch that sampled it. Bottom: over epochs (Figures 1, 5, 6)."
