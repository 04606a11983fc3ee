"""The report of a run: its numbers against the run's files, its page in a browser."""

from __future__ import annotations

import html.parser
import json
import math
import re
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from adadf_dist.config.load import ConfigLayer, build_config, override
from adadf_dist.data.dataset import open_dataset
from adadf_dist.report.__main__ import main
from adadf_dist.report.api import report
from adadf_dist.report.comparison import compare_groups
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
from adadf_dist.report.gallery import Thumbnails
from adadf_dist.report.page import render, summarize_findings
from adadf_dist.report.run_reader import RunData, open_run
from tests.helpers import browser
from tests.helpers.epoch_records import confusion, record
from tests.helpers.runs import finish, records, settings, train_here
from tests.helpers.waiting import wait_until


@pytest.fixture(scope="module")
def run(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three epochs with the report that training wrote."""
    out = tmp_path_factory.mktemp("runs") / "run"
    more = {"class_distributions__threshold": "0.15", "evaluation__write_report": "true"}
    printed = train_here(settings(faces, out, epochs="3", **more))
    assert printed.splitlines()[-1] == f"report: {out / 'report.html'}"
    return out


@pytest.fixture(scope="module")
def copies(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for runs that equal `run` except for what a test changes."""
    return tmp_path_factory.mktemp("copies")


@pytest.fixture(scope="module")
def baseline(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with one-hot labels, whose report failed without harm."""
    out = tmp_path_factory.mktemp("runs") / "baseline"
    (out / "report.html").mkdir(parents=True)  # where the page would be written
    more = {"loss__supervision": "one_hot", "evaluation__write_report": "true"}
    last = train_here(settings(faces, out, epochs="1", **more)).splitlines()[-1]
    assert last.startswith("warning: report failed (UserError: ") and "python -m adadf_dist.report" in last
    assert json.loads((out / "status.json").read_text())["state"] == "finished"
    return out


def copy_of(run: Path, folder: Path, accuracy: float | None = None, **changed: str) -> Path:
    """A copy of the run with another name, settings (`__` for the dot) and test accuracy."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints"))
    text = (folder / "config.yaml").read_text()
    for key, value in changed.items():
        text, count = re.subn(
            rf"(?m)^(\s*){key.rpartition('__')[2]}: .*$", rf"\g<1>{key.rpartition('__')[2]}: {value}", text
        )
        assert count == 1, key
    (folder / "config.yaml").write_text(text)
    if accuracy is not None:
        result = json.loads((folder / "result.json").read_text())
        result["test"]["accuracy"] = accuracy
        (folder / "result.json").write_text(json.dumps(result))
    return folder


class Page(html.parser.HTMLParser):
    """What a browser would load, the ids it would find, and the text it would show."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.refers: list[str] = []
        self.data: list[str] = []
        self.text = ""
        self._inside = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = "data" if ("type", "application/json") in attrs else tag if tag in ("script", "style") else ""
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            self.refers += re.findall(r"url\(#([^)]+)\)", value or "")
            if name in ("src", "href", "data", "action", "srcset", "xlink:href") and value:
                (self.refers if value.startswith("#") else self.loads).append(value.removeprefix("#"))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        inside = self._inside
        self.handle_starttag(tag, attrs)
        self._inside = inside

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "data":
            self.data.append(data)
        elif not self._inside:
            self.text += data + " "


def test_page_loads_nothing_and_has_unique_ids(run: Path) -> None:
    page = Page(run / "report.html")
    assert all(value.startswith("data:") for value in page.loads), [v[:80] for v in page.loads]
    assert "@import" not in page.source and not re.search(r"url\((?!#)", page.source)
    assert [name for name, count in Counter(page.ids).items() if count > 1] == []
    assert len(page.refers) > 50 and set(page.refers) <= set(page.ids)
    for figure in ("curves", "confusion", "class_distributions", "thresholds", "attention", "features", "face"):
        assert figure in page.ids
    assert not list(run.glob("*.partial"))


def test_names_are_escaped(run: Path, tmp_path: Path) -> None:
    named = copy_of(run, tmp_path / "a<script>&b")
    facts = json.loads((named / "run_info.json").read_text())
    classes = [f"<script>{name}" for name in facts["classes"]]
    (named / "run_info.json").write_text(json.dumps({**facts, "classes": classes}))
    with np.load(named / "predictions-validation.npz") as arrays:
        columns = {**arrays, "classes": np.array(classes)}
    np.savez(named / "predictions-validation.npz", **columns)
    opened = open_run(named)
    (tmp_path / "page.html").write_text(render([opened], None, [], Thumbnails(opened)), encoding="utf-8")
    page = Page(tmp_path / "page.html")
    assert page.source.count("<script") == 1  # the page's own
    assert "Report: a<script>&b" in page.text and "label <script>" in page.text


def test_only_judged_rules_are_reported_as_healthy(tmp_path: Path) -> None:
    """A run of 2 epochs of 10 steps, too short for nearly every rule, with a warm-up ten times its length."""
    few = confusion([3, 3, 3], [4, 30, 6], [3, 7, 30])
    epochs = tuple(record(epoch, few, step=10 * epoch) for epoch in (1, 2))
    values = {"epochs": 2, "loss.epoch_threshold": 1, "optimizer.lr_gamma": 1.0}
    config = build_config([ConfigLayer("test", values)])
    facts = {"classes": ["fear", "happy", "sad"]}
    text = str(summarize_findings(RunData(tmp_path, config, facts, epochs, None)))
    judged, _, not_judged = text.partition("Not checked: ")
    assert (
        "No problems found. Checked: settings for the length of the run, loader, samples that do not decode." in judged
    )
    for reason in (
        "collapse (checked from epoch 3 on)",
        "attention (only 20 steps after the warm-up of 0 steps; at least 200 are needed)",
        "classes with fewer than 10 validation samples: fear (9)",
        "auxiliary vs. target branch (needs the predictions of a finished run)",
    ):
        assert reason in not_judged
    slow = override(config, {"optimizer.warmup_steps": 200})
    text = str(summarize_findings(RunData(tmp_path, slow, facts, epochs, None)))
    assert "the learning rate reaches at most 10% of optimizer.lr" in text and "No problems found" not in text


def test_result_figures_equal_the_files(run: Path) -> None:
    page = Page(run / "report.html")
    result = json.loads((run / "result.json").read_text())
    epochs = records(run, "epoch")
    accuracies = [epoch["validation"]["accuracy"] for epoch in epochs]  # type: ignore[index]
    assert f"{max(accuracies):.2%}" in page.text
    assert f"validation, epoch {accuracies.index(max(accuracies)) + 1}" in page.text
    low, high = result["test"]["accuracy_interval"]
    assert f"{result['test']['accuracy']:.2%} {100 * low:.2f} to {100 * high:.2f}" in page.text
    assert "test (30 samples, best epoch)" in page.text
    assert "In progress" not in page.text


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


def test_slider_has_class_distributions_of_every_epoch(run: Path) -> None:
    (data,) = map(json.loads, Page(run / "report.html").data)
    assert data["epochs"] == [1, 2, 3]
    for place, path in enumerate(sorted((run / "history").glob("epoch-*.npz"))):
        with np.load(path) as epoch:
            np.testing.assert_allclose(data["rows"][place], epoch["class_distributions"], atol=5e-5)
            assert data["met"][place] == epoch["class_threshold_met"].astype(int).tolist()
    assert any(map(any, data["met"]))


def test_samples_are_ranked_and_shown(run: Path, faces: Path) -> None:
    page = Page(run / "report.html")
    with np.load(run / "predictions-validation.npz") as answers:
        logits = answers["target_logits"].astype(np.float64)
        keys = answers["keys"]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    unsure = -(shares * np.log(shares)).sum(axis=1)
    section = page.text[page.text.index("Most confident") :]
    certain, least = section[: section.index("Least confident")], section[section.index("Least confident") :]
    named = re.findall(r"validation-\d+", certain)
    assert named == [str(key) for key in keys[np.argsort(unsure)][: len(named)]] and len(named) == 14
    assert str(keys[unsure.argmax()]) in re.findall(r"validation-\d+", least)[0]
    pictures = [value for value in page.loads if value.startswith("data:image/jpeg")]
    assert len(pictures) > 28
    assert "no images" not in page.text


def test_ambiguous_sample_is_found_and_described(run: Path, faces: Path) -> None:
    opened = open_run(run)
    face = find_tracked_sample(opened)
    assert face is not None and face.votes is not None
    split = open_dataset(faces).split("train")
    with np.load(run / "history" / "epoch-0003.npz") as epoch:
        listed, rows = epoch["tracked_samples"], epoch["tracked_distributions"]
    assert split.votes is not None
    votes = split.votes[listed] / split.votes[listed].sum(axis=1, keepdims=True)
    entropies = -(votes * np.log(np.where(votes > 0, votes, 1))).sum(axis=1)
    place = int(entropies.argmax())
    assert (
        face.key == str(split.keys[listed[place]]) and f"Training sample {face.key}" in Page(run / "report.html").text
    )
    np.testing.assert_allclose(face.distributions[-1], rows[place])
    shown = distribution_stages(opened, face)
    with np.load(run / "history" / "epoch-0002.npz") as before:
        np.testing.assert_allclose(shown["class (5)"], before["class_distributions"][face.label])
    # equation 12: the fused distribution lies between its two parts, by w'
    weight = face.weights[-1]
    mixed = weight * shown["class (5)"] + (1 - weight) * face.distributions[-1, AUXILIARY]
    np.testing.assert_allclose(face.distributions[-1, FUSED], mixed, atol=2e-3)  # w' is stored as float16


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
    assert "figures: is not empty" in wrong(again, capsys)
    assert "page.html: is a file" in wrong([*again[:-1], str(tmp_path / "page.html")], capsys)


def test_page_is_deterministic(run: Path, tmp_path: Path) -> None:
    report([run], tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == (run / "report.html").read_bytes()


def test_tsne_keeps_neighbors_together() -> None:
    random = np.random.default_rng(0)
    centers = 8 * random.normal(size=(3, 16))
    labels = np.arange(90) % 3
    points = tsne_embedding((centers[labels] + random.normal(size=(90, 16))).astype(np.float32))
    distances = np.linalg.norm(points[:, None] - points[None], axis=2) + 1e9 * np.eye(90)
    assert (labels[distances.argmin(axis=1)] == labels).all()


def test_tsne_compares_with_a_differently_supervised_run(run: Path, baseline: Path, tmp_path: Path) -> None:
    again = copy_of(baseline, tmp_path / "again", seed="7")
    twin = copy_of(run, tmp_path / "twin", seed="7")
    for first, others, second in ((baseline, (again, run), run), (run, (twin, again), again)):
        (drawn,) = tsne_figures([open_run(folder) for folder in (first, *others)])
        with plot_style():
            titles = [axes.get_title("left") for axes in drawn.make().axes]
        assert [title.rpartition(": ")[2] for title in titles] == [first.name, second.name]


def test_several_runs_are_paired_by_seed(run: Path, copies: Path, tmp_path: Path) -> None:
    first, second = [0.50, 0.60, 0.70], [0.52, 0.65, 0.71]
    mine = [copy_of(run, copies / f"mine{seed}", value, seed=str(seed)) for seed, value in enumerate(first)]
    theirs = [
        copy_of(run, copies / f"theirs{seed}", value, seed=str(seed), loss__lambda_min="0.4")
        for seed, value in enumerate(second)
    ]
    (pair,) = compare_groups([open_run(folder) for folder in (*mine, *theirs)])
    assert (pair.name, pair.measure, pair.seeds) == ("loss.lambda_min = 0.4 (was 0.2)", "test", (0, 1, 2))
    assert pair.difference is not None
    assert pair.difference.mean == pytest.approx(fmean([0.02, 0.05, 0.01]))
    report([*mine, *theirs], tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    # seeds: t(0.975, 2) = 4.3027, the differences' standard deviation is 2.0817 points. Samples: the predictions stored
    # are not of these accuracies, so 30 samples are taken as unpaired, with binomial variances
    share = [(30 * fmean(values) + 2) / 34 for values in (first, second)]
    sampling = sum(p * (1 - p) / 30 for p in share)
    half = 100 * math.sqrt(4.3027**2 * 0.020817**2 / 3 + 1.959964**2 * sampling)
    interval = f"95% interval {2.6667 - half:+.2f} to {2.6667 + half:+.2f} over seeds 0, 1, 2 and 30 samples"
    assert f"+2.67 points, {interval}: too few seeds or samples to tell" in page.text
    assert "loss.lambda_min" in page.text and "theirs2" in page.text
    assert [name for name, count in Counter(page.ids).items() if count > 1] == []

    (alone,) = compare_groups([open_run(mine[0]), open_run(theirs[0])])
    assert alone.difference is None
    assert compare_groups([open_run(mine[0]), open_run(theirs[1])]) == [], "no seed in common"
    watched = copy_of(theirs[0], copies / "watched", runtime__profile_steps="5")
    assert len(compare_groups([open_run(mine[0]), open_run(watched)])) == 1, "a profile is no other way of training"
    assert compare_groups([open_run(mine[0]), open_run(mine[1])]) == [], "one way of training"


def test_incomparable_runs_are_rejected(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another task, or a seed that occurs twice in a group: no difference is computed."""
    twin = copy_of(run, tmp_path / "twin", 0.1)
    other = copy_of(run, tmp_path / "other")
    facts = json.loads((other / "run_info.json").read_text())
    (other / "run_info.json").write_text(json.dumps({**facts, "dataset": "other-faces"}))
    cleaned = copy_of(run, tmp_path / "cleaned", loss__lambda_min="0.4")
    (cleaned / "run_info.json").write_text(json.dumps({**facts, "faces": {**facts["faces"], "train": 60}}))
    page = str(tmp_path / "page.html")
    assert "same settings and seed as" in wrong([str(run), str(twin), "--out", page], capsys)
    assert "evaluated on a different dataset than" in wrong([str(run), str(other), "--out", page], capsys)
    assert not Path(page).exists()
    main([str(run), str(cleaned), "--out", page])


def test_truncated_run_files_are_handled(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truncated = copy_of(run, tmp_path / "truncated")
    with (truncated / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "epoch", "\xff\xfe')
    assert len(open_run(truncated).epochs) == 3
    (truncated / "history" / "epoch-0002.npz").write_bytes(b"")
    assert "epoch-0002.npz: truncated or corrupt" in wrong([str(truncated)], capsys)


def test_titles_do_not_overlap(run: Path) -> None:
    opened = open_run(run)
    face = find_tracked_sample(opened, "")
    assert face is not None and face.votes is not None  # the case with the most panels
    with plot_style():
        figure = plot_tracked_sample(opened, face)
        FigureCanvasAgg(figure).draw()
        titles = [(axes, axes.get_title("left")) for axes in figure.axes]
        boxes = [t.get_window_extent() for axes, title in titles for t in axes.findobj(Text) if t.get_text() == title]
    assert len(boxes) == 9 and all(box.width > 10 for box in boxes)
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])


def test_unfinished_run_is_reported(run: Path, tmp_path: Path) -> None:
    begun = copy_of(run, tmp_path / "begun")
    for name in ("result.json", "predictions-validation.npz", "predictions-test.npz", "report.html"):
        (begun / name).unlink()
    lines = (begun / "metrics.jsonl").read_text().splitlines(keepends=True)
    second = next(n for n, line in enumerate(lines) if '"kind": "epoch"' in line and '"epoch": 2' in line)
    (begun / "metrics.jsonl").write_text("".join(lines[: second + 1]) + lines[second + 1][:40])
    main([str(begun)])
    page = Page(begun / "report.html")
    assert "In progress: this report covers epochs 1 to 2 of 3" in page.text
    assert "available when the run ends" in page.text
    assert "features" not in page.ids and "confusion" in page.ids and "face" in page.ids


def test_unavailable_images_are_left_out(run: Path, tmp_path: Path) -> None:
    moved = copy_of(run, tmp_path / "moved", data__shards="elsewhere/faces")
    main([str(moved)])
    assert "no images: elsewhere/faces not found" in Page(moved / "report.html").text


def test_baseline_report_has_no_distributions(baseline: Path, run: Path, tmp_path: Path) -> None:
    report([run, baseline], tmp_path / "both.html")
    page = Page(tmp_path / "both.html")
    assert "<!-- single-label baseline: baseline -->" in page.source
    main([str(baseline), "--out", str(tmp_path / "alone.html")])
    alone = Page(tmp_path / "alone.html")
    assert "class_distributions" not in alone.ids and "attention" not in alone.ids and "curves" in alone.ids


def wrong(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    output = capsys.readouterr().err
    assert output.count("\n") == 1
    return output


def test_user_errors_are_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such run folder" in wrong([str(tmp_path / "nowhere")], capsys)
    assert "not a run folder of adadf_dist.train" in wrong([str(tmp_path)], capsys)
    assert "listed twice" in wrong([str(run), f"{run}/", "--out", str(tmp_path / "x.html")], capsys)
    begun = copy_of(run, tmp_path / "begun")
    (begun / "metrics.jsonl").write_text("")
    assert "no finished epoch to report yet" in wrong([str(begun)], capsys)
    face = find_tracked_sample(open_run(run))
    assert face is not None
    assert f"did you mean {face.key}?" in wrong([str(run), "--sample", f"{face.key}x"], capsys)
    with np.load(run / "history" / "epoch-0001.npz") as epoch, np.load(run / "samples.npz") as columns:
        other = next(str(key) for n, key in enumerate(columns["keys"]) if n not in epoch["tracked_samples"].tolist())
    assert f"runtime.tracked_samples {other}" in wrong([str(run), "--sample", other], capsys)
    for path in (begun / "history").glob("*.npz"):  # as with a sampler that skipped the sample
        with np.load(path) as arrays:
            columns = dict(arrays)
        columns["seen"][columns["tracked_samples"]] = 0
        np.savez(path, **columns)
    shutil.copy(run / "metrics.jsonl", begun)
    assert "not sampled in any finished epoch yet" in wrong([str(begun), "--sample", face.key], capsys)
    assert find_tracked_sample(open_run(begun)) is None
    there = tmp_path / "mine.html"
    there.write_text("mine")
    assert "--overwrite to replace it" in wrong([str(run), "--out", str(there)], capsys)
    assert there.read_text() == "mine"
    assert "is a folder" in wrong([str(run), "--out", str(tmp_path)], capsys)
    assert "is not a folder" in wrong([str(run), "--out", str(there / "x.html")], capsys)
    main([str(run), "--out", str(there), "--overwrite", "--sample", face.key])
    assert there.read_text().startswith("<!doctype html>")


def test_training_does_not_import_plotting() -> None:
    script = "import sys, adadf_dist.train; sys.exit(any(m in sys.modules for m in ('matplotlib', 'sklearn')))"
    assert finish([sys.executable, "-c", script]).returncode == 0


def shown(page: browser.Page) -> str:
    """The displayed epoch of the class distributions, and the first class's first three shares."""
    bars = "[...document.querySelectorAll('#forming .bar > div:last-child')].slice(0, 3).map((e) => e.textContent)"
    text: str = page.run(f"[document.querySelector('#forming output').textContent, ...{bars}].join(' ')")
    return text


@browser.needs_chromium
def test_page_works_in_a_browser(run: Path) -> None:
    """The slider moves to the first epoch; playing from the end starts there and runs to the end."""
    (data,) = map(json.loads, Page(run / "report.html").data)
    first, last = (f"epoch {e} " + " ".join(f"{v:.2f}" for v in data["rows"][e - 1][0][:3]) for e in (1, 3))
    with browser.chromium_page() as page:
        for width in (1200, 500):
            page.resize(width, 900)
            page.open(run / "report.html")
            assert shown(page) == last
            page.slide("#forming input", 0)
            assert shown(page) == first
            page.slide("#forming input", 2)
            page.click("#forming button")
            assert shown(page) == first
            wait_until(lambda: shown(page) == last)
            assert not page.run("document.documentElement.scrollWidth > window.innerWidth")
        assert page.problems == []
