"""The output of the doctor, as its tests read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shards.doctor.__main__ import main


class DoctorOutput:
    """The output of a run of the doctor."""

    def __init__(self, folder: Path, out: Path, *options: str) -> None:
        words = [
            str(folder),
            "--json",
            str(out / "doctor.json"),
            "--html",
            str(out / "doctor.html"),
            "--overwrite",
            *options,
        ]
        with pytest.raises(SystemExit) as ended:
            main([*words, "--num-workers", "1"] if "--num-workers" not in options else words)
        self.status = ended.value.code
        self.json: dict[str, Any] = json.loads((out / "doctor.json").read_text())
        self.html = (out / "doctor.html").read_text()

    def findings(self, check: str, worse_than: str = "ok") -> list[dict[str, Any]]:
        words = ["ok", "info", "warning", "error"]
        return [
            finding
            for finding in self.json["findings"]
            if finding["check"] == check and words.index(finding["severity"]) > words.index(worse_than)
        ]

    def groups(self, check: str, containing: str = "", where: str = "") -> list[set[str]]:
        return [
            {sample["name"] for sample in group["faces"]}
            for finding in self.findings(check)
            if containing in finding["message"] and where in finding["location"]
            for group in finding["groups"]
        ]


def same_groups(found: list[set[str]], planted: list[set[str]]) -> bool:
    return sorted(map(sorted, found)) == sorted(map(sorted, planted))
