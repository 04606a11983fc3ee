"""The page of a report: its numbers against the run's files, unfinished runs, a browser."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np

from adadf_dist.config.load import ConfigLayer, build_config, override
from adadf_dist.report.__main__ import main
from adadf_dist.report.api import report
from adadf_dist.report.gallery import Thumbnails
from adadf_dist.report.page import render, summarize_findings
from adadf_dist.report.run_reader import RunData, open_run
from tests.helpers import browser
from tests.helpers.epoch_records import confusion, record
from tests.helpers.reports import Page, copy_run
from tests.helpers.runs import records
from tests.helpers.waiting import wait_until


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
    named = copy_run(run, tmp_path / "a<script>&b")
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
    entropies = -(shares * np.log(shares)).sum(axis=1)
    section = page.text[page.text.index("Most confident") :]
    most_confident, least_confident = (
        section[: section.index("Least confident")],
        section[section.index("Least confident") :],
    )
    named = re.findall(r"validation-\d+", most_confident)
    assert named == [str(key) for key in keys[np.argsort(entropies)][: len(named)]] and len(named) == 14
    assert str(keys[entropies.argmax()]) in re.findall(r"validation-\d+", least_confident)[0]
    images = [value for value in page.loads if value.startswith("data:image/jpeg")]
    assert len(images) > 28
    assert "no images" not in page.text


def test_page_is_deterministic(run: Path, tmp_path: Path) -> None:
    report([run], tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == (run / "report.html").read_bytes()


def test_unfinished_run_is_reported(run: Path, tmp_path: Path) -> None:
    unfinished = copy_run(run, tmp_path / "begun")
    for name in ("result.json", "predictions-validation.npz", "predictions-test.npz", "report.html"):
        (unfinished / name).unlink()
    lines = (unfinished / "metrics.jsonl").read_text().splitlines(keepends=True)
    second = next(n for n, line in enumerate(lines) if '"kind": "epoch"' in line and '"epoch": 2' in line)
    (unfinished / "metrics.jsonl").write_text("".join(lines[: second + 1]) + lines[second + 1][:40])
    main([str(unfinished)])
    page = Page(unfinished / "report.html")
    assert "In progress: this report covers epochs 1 to 2 of 3" in page.text
    assert "available when the run ends" in page.text
    assert "features" not in page.ids and "confusion" in page.ids and "face" in page.ids


def test_unavailable_images_are_left_out(run: Path, tmp_path: Path) -> None:
    moved = copy_run(run, tmp_path / "moved", data__shards="elsewhere/faces")
    main([str(moved)])
    assert "no images: elsewhere/faces not found" in Page(moved / "report.html").text


def test_baseline_report_has_no_distributions(baseline: Path, run: Path, tmp_path: Path) -> None:
    report([run, baseline], tmp_path / "both.html")
    page = Page(tmp_path / "both.html")
    assert "<!-- single-label baseline: baseline -->" in page.source
    main([str(baseline), "--out", str(tmp_path / "alone.html")])
    alone = Page(tmp_path / "alone.html")
    assert "class_distributions" not in alone.ids and "attention" not in alone.ids and "curves" in alone.ids


def shown_epoch(page: browser.Page) -> str:
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
            assert shown_epoch(page) == last
            page.slide("#forming input", 0)
            assert shown_epoch(page) == first
            page.slide("#forming input", 2)
            page.click("#forming button")
            assert shown_epoch(page) == first
            wait_until(lambda: shown_epoch(page) == last)
            assert not page.run("document.documentElement.scrollWidth > window.innerWidth")
        assert page.problems == []
