"""The figures of a report: confusion matrix, tracked sample, t-SNE, files for papers."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from adadf_dist.data.dataset import open_dataset
from adadf_dist.report.__main__ import main
from adadf_dist.report.figures.class_figures import class_means
from adadf_dist.report.figures.index import tsne_figures
from adadf_dist.report.figures.style import plot_style
from adadf_dist.report.figures.tracked_sample import (
    AUXILIARY,
    FUSED,
    distribution_stages,
    find_tracked_sample,
    plot_tracked_sample,
)
from adadf_dist.report.figures.tsne import tsne_embedding
from adadf_dist.report.run_reader import open_run
from tests.helpers.reports import Page, copy_run, error_line


def test_confusion_matrix_is_of_the_selected_model(run: Path) -> None:
    svg = Page(run / "report.html").source
    with np.load(run / "predictions-test.npz") as answers:
        labels, predicted = answers["labels"], answers["target_logits"].argmax(axis=1)
    totals = Counter(labels.tolist())
    classes = open_run(run).classes
    for number, name in enumerate(classes):
        assert f"<!-- {name} ({totals[number]}) -->" in svg  # matplotlib records every text that it draws
    drawn = svg[svg.index('id="confusion"') : svg.index('id="class_distributions"')]
    assert "<!-- Test, same epoch -->" in drawn
    cells = re.findall(r"<!-- (\d+|·) -->", drawn)
    size = len(classes) ** 2
    assert len(cells) == 2 * size
    for row in range(len(classes)):
        for column in range(len(classes)):
            count = int(((labels == row) & (predicted == column)).sum())
            expected = f"{100 * count / totals[row]:.0f}" if count else "·"
            assert cells[size + row * len(classes) + column] == expected


def test_ambiguous_sample_is_found_and_described(run: Path, faces: Path) -> None:
    opened = open_run(run)
    sample = find_tracked_sample(opened)
    assert sample is not None and sample.votes is not None
    split = open_dataset(faces).split("train")
    with np.load(run / "history" / "epoch-0003.npz") as epoch:
        listed, rows = epoch["tracked_samples"], epoch["tracked_distributions"]
    assert split.votes is not None
    votes = split.votes[listed] / split.votes[listed].sum(axis=1, keepdims=True)
    entropies = -(votes * np.log(np.where(votes > 0, votes, 1))).sum(axis=1)
    place = int(entropies.argmax())
    assert (
        sample.key == str(split.keys[listed[place]])
        and f"Training sample {sample.key}" in Page(run / "report.html").text
    )
    np.testing.assert_allclose(sample.distributions[-1], rows[place])
    stages = distribution_stages(opened, sample)
    with np.load(run / "history" / "epoch-0002.npz") as before:
        np.testing.assert_allclose(stages["class (5)"], before["class_distributions"][sample.label])
    # equation 12: the fused distribution lies between its two parts, by w'
    weight = sample.weights[-1]
    mixed = weight * stages["class (5)"] + (1 - weight) * sample.distributions[-1, AUXILIARY]
    np.testing.assert_allclose(sample.distributions[-1, FUSED], mixed, atol=2e-3)  # w' is stored as float16


def test_attention_by_class_equals_the_history() -> None:
    values = np.array([0.2, 0.4, np.nan, 1.0])
    means = class_means(values, np.array([0, 0, 1, 2]), 4)
    np.testing.assert_allclose(means, [0.3, np.nan, 1.0, np.nan])


def test_figures_are_written_for_papers(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(run), "--out", str(tmp_path / "page.html"), "--figures", str(tmp_path / "figures")])
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert {"curves", "confusion", "class_distributions", "thresholds", "attention", "features", "face"} == names
    for name in names:
        with Image.open(tmp_path / "figures" / f"{name}.png") as image:
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
            assert image.width <= 7.2 * 300
        root = ElementTree.parse(tmp_path / "figures" / f"{name}.svg").getroot()
        assert root.tag.endswith("svg")
    again = [str(run), "--out", str(tmp_path / "other.html"), "--figures", str(tmp_path / "figures")]
    assert "figures: is not empty" in error_line(again, capsys)
    assert "page.html: is a file" in error_line([*again[:-1], str(tmp_path / "page.html")], capsys)


def test_tsne_keeps_neighbors_together() -> None:
    random = np.random.default_rng(0)
    centers = 8 * random.normal(size=(3, 16))
    labels = np.arange(90) % 3
    points = tsne_embedding((centers[labels] + random.normal(size=(90, 16))).astype(np.float32))
    distances = np.linalg.norm(points[:, None] - points[None], axis=2) + 1e9 * np.eye(90)
    assert (labels[distances.argmin(axis=1)] == labels).all()


def test_tsne_compares_with_a_differently_supervised_run(run: Path, baseline: Path, tmp_path: Path) -> None:
    again = copy_run(baseline, tmp_path / "again", seed="7")
    twin = copy_run(run, tmp_path / "twin", seed="7")
    for first, others, second in ((baseline, (again, run), run), (run, (twin, again), again)):
        (drawn,) = tsne_figures([open_run(folder) for folder in (first, *others)])
        with plot_style():
            titles = [axes.get_title("left") for axes in drawn.make().axes]
        assert [title.rpartition(": ")[2] for title in titles] == [first.name, second.name]


def test_titles_do_not_overlap(run: Path) -> None:
    opened = open_run(run)
    sample = find_tracked_sample(opened, "")
    assert sample is not None and sample.votes is not None  # the case with the most panels
    with plot_style():
        figure = plot_tracked_sample(opened, sample)
        FigureCanvasAgg(figure).draw()
        titles = [(axes, axes.get_title("left")) for axes in figure.axes]
        boxes = [t.get_window_extent() for axes, title in titles for t in axes.findobj(Text) if t.get_text() == title]
    assert len(boxes) == 9 and all(box.width > 10 for box in boxes)
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])
