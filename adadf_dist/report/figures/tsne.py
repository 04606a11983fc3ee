"""t-SNE plot of sample features (Figure 3 of the paper)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from adadf_dist.report.figures.style import SOFT, WIDTH, color, marker, new_figure
from adadf_dist.tracking.artifacts import SavedPredictions

MOST_POINTS = 1000
FEWEST_POINTS = 10


def subsample(saved: SavedPredictions) -> NDArray[np.int64]:
    """Return evenly spaced row indices of the saved features, at most `MOST_POINTS`."""
    rows = len(saved.features)
    return np.unique(np.linspace(0, rows - 1, min(rows, MOST_POINTS)).round().astype(np.int64))


def tsne_embedding(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Map features [n, F] to points [n, 2] with t-SNE, initialized by PCA. Deterministic for any number of cores."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        perplexity = min(30.0, (len(features) - 1) / 3)
        tsne = TSNE(init="pca", perplexity=perplexity, random_state=0, n_jobs=1)
        points: NDArray[np.float64] = tsne.fit_transform(features.astype(np.float32)).astype(np.float64)
    return points


def plot_features(runs: Mapping[str, SavedPredictions]) -> Figure:
    """Plot one t-SNE map for each entry of `runs` (title -> predictions). Color and marker show the true class."""
    side = WIDTH / 2
    width = WIDTH if len(runs) > 1 else side + 1.4
    figure = new_figure(side + 0.25, width)
    panels = np.atleast_1d(figure.subplots(1, len(runs)))
    for axes, (title, saved) in zip(panels, runs.items(), strict=True):
        rows = subsample(saved)
        points, labels = tsne_embedding(saved.features[rows]), saved.faces.labels[saved.featured[rows]]
        for number in range(len(saved.faces.classes)):
            mine = points[labels == number]
            axes.scatter(*mine.T, s=11, color=color(number), marker=marker(number), alpha=0.75, linewidth=0)
        axes.set(title=title, xticks=[], yticks=[])
        axes.set_box_aspect(1)
        axes.margins(0.04)
        for spine in axes.spines.values():
            spine.set(visible=True, color=SOFT, linewidth=0.5)
    handles = [
        Line2D([], [], color=color(number), marker=marker(number), linestyle="", markersize=4.5, label=name)
        for number, name in enumerate(saved.faces.classes)
    ]
    columns = 4 if len(runs) > 1 and len(handles) == 8 else min(len(handles), 7 if len(runs) > 1 else 4)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, handletextpad=0.2, columnspacing=1.2)
    return figure
