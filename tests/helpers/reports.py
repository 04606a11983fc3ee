"""What the tests of the report share: changed copies of a run, parsed pages, error lines."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
from pathlib import Path

import pytest

from adadf_dist.report.__main__ import main


def copy_run(run: Path, folder: Path, accuracy: float | None = None, **changed: str) -> Path:
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


def error_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    output = capsys.readouterr().err
    assert output.count("\n") == 1
    return output
