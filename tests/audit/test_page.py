"""The page of an audit: contents, and decisions in a browser."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from adadf_dist.data.dataset import open_dataset
from tests.helpers.audits import read_table
from tests.helpers.browser import Page, chromium_page, needs_chromium
from tests.helpers.waiting import wait_until


def test_page_needs_no_network(audit_folder: Path) -> None:
    content = (audit_folder / "audit.html").read_text()
    assert "http" not in content
    assert content.count("<script") == content.count("</script") == 2


def dataset_classes(folder: Path) -> dict[str, str]:
    split = open_dataset(folder).split("train")
    return {key: split.classes[label] for key, label in zip(split.keys.tolist(), split.labels, strict=True)}


def test_page_shows_dataset_labels(audit_folder: Path, dataset: Path) -> None:
    """The run's label noise changed a fifth of them."""
    content = (audit_folder / "audit.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', content)[1])  # type: ignore[index]
    classes = dataset_classes(dataset)
    assert "<script>" in data["classes"]
    assert all(data["classes"][sample["stored"]] == classes[sample["key"]] for sample in data["faces"])
    assert any(sample["stored"] != sample["label"] for sample in data["faces"])


@pytest.fixture
def page(audit_folder: Path, tmp_path: Path) -> Iterator[Page]:
    with chromium_page() as opened:
        opened.downloads_to(tmp_path)
        opened.open(audit_folder / "audit.html")
        yield opened


def shown_keys(page: Page) -> list[str]:
    script = "[...document.querySelectorAll('.face:not([hidden]) code')].map((code) => code.textContent)"
    found: list[str] = page.run(script)
    return found


@needs_chromium
def test_page_filters_records_and_exports_decisions(
    page: Page, audit_folder: Path, dataset: Path, tmp_path: Path
) -> None:
    classes = dataset_classes(dataset)
    rows = read_table(audit_folder)[:60]
    keys = [row["key"] for row in rows]
    assert shown_keys(page) == keys
    loaded = (
        "[...document.querySelectorAll('.face img')].filter((img) => img.complete && img.naturalWidth === 32).length"
    )
    assert page.run(loaded) == 60

    page.press("k")  # the first sample; then the next one has the focus
    page.press("r")
    page.press("ArrowRight")
    page.press("d")
    page.click(".face:nth-child(6) [data-do=relabel]")
    page.press("7")  # the seventh sample gets class 7
    page.press("k")
    page.press("ArrowLeft")
    page.press("u")  # the eighth is undecided again
    expected = {
        keys[0]: ("keep", ""),
        keys[1]: ("relabel", likeliest_other_class(rows[1])),
        keys[3]: ("drop", ""),
        keys[5]: ("relabel", likeliest_other_class(rows[5])),
        keys[6]: ("relabel", page.run("data.classes[6]")),
    }
    page.open(audit_folder / "audit.html")  # nothing is lost on reload
    assert "5 decided" in page.run("document.getElementById('count').textContent")

    label = rows[0]["label"]
    number = page.run(f"data.classes.indexOf({json.dumps(label)})")
    page.choose("#label", str(number))
    assert shown_keys(page) == [row["key"] for row in rows if row["label"] == label]
    page.choose("#label", "")
    doubted = next(row for row in rows if row["label"] != row["suggested_label"])
    pair = (doubted["label"], doubted["suggested_label"])
    page.choose("#pair", ">".join(str(page.run(f"data.classes.indexOf({json.dumps(name)})")) for name in pair))
    assert shown_keys(page) == [row["key"] for row in rows if (row["label"], row["suggested_label"]) == pair]
    page.choose("#pair", "")
    page.choose("#which", "open")
    assert shown_keys(page) == [key for key in keys if key not in expected]

    page.click("#export")
    file = tmp_path / "relabel.csv"
    wait_until(lambda: file.exists() and file.stat().st_size)
    with file.open(newline="") as stream:
        header, *lines = csv.reader(stream)
    assert header == ["key", "decision", "label", "old_label"]
    assert {key: (decision, name) for key, decision, name, old in lines} == expected
    assert {key: old for key, _, _, old in lines} == {key: classes[key] for key in expected}
    assert page.problems == []


def likeliest_other_class(row: dict[str, str]) -> str:
    """The likeliest class of a sample besides its label."""
    if row["suggested_label"] != row["label"]:
        return row["suggested_label"]
    shares = {name[7:]: float(share) for name, share in row.items() if name.startswith("target_")}
    return max((share, name) for name, share in shares.items() if name != row["label"])[1]
