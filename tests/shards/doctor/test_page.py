"""The doctor's page: every finding with its images, names escaped."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

from tests.helpers.doctor_output import DoctorOutput


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_shows_every_verdict_and_its_images(faulty: tuple[DoctorOutput, dict[str, list[set[str]]]]) -> None:
    output, faults = faulty
    page = Page(output.html)
    assert not page.open, "every tag is closed"
    for finding in output.json["findings"]:
        assert finding["message"] in output.html
    shown = {attributes["alt"] for tag, attributes in page.tags if tag == "img"}
    for fault, groups in faults.items():
        if fault != "unreadable":
            assert set().union(*groups) <= shown
    sources = [str(attributes["src"]) for tag, attributes in page.tags if tag == "img"]
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    assert "http" not in re.sub(r"base64,[^\"]*", "", output.html), "nothing is loaded from elsewhere"


def test_page_escapes_names_from_the_data(clean: Path, tmp_path: Path) -> None:
    hostile = "<script>alert('&')<"
    root = tmp_path / "a&b<i>"
    for split in ("train", "test"):
        for name, new in (("happy", hostile), ("sad", "sad")):
            shutil.copytree(clean / split / name, root / split / new)
    sample = next((root / "train" / hostile).iterdir())
    shutil.copy(sample, root / "test" / hostile / '"><b>.png')
    output = DoctorOutput(root, tmp_path)
    page = Page(output.html)
    assert not page.open
    assert not {"script", "i"} & {tag for tag, attributes in page.tags if "style" not in attributes}
    assert "&lt;script&gt;" in output.html
    assert any('"><b>.png' in str(attributes.get("alt")) for _, attributes in page.tags)
