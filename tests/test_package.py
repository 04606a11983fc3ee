"""The wheel contains adadf_dist and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def test_wheel_contains_only_the_package(tmp_path: Path) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in tracked:  # a clean copy, since building in place would leave folders behind
        if name.startswith(("adadf_dist/", "shards/", "tests/")) or "/" not in name:
            copy = tmp_path / "source" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), "."]
    subprocess.run(command, cwd=tmp_path / "source", check=True, capture_output=True, timeout=200)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"adadf_dist"}
    assert {"adadf_dist/train.py", "adadf_dist/config/presets/demo.toml", "adadf_dist/py.typed"} <= set(names)
    assets = {name for name in tracked if name.startswith("adadf_dist/") and name.endswith((".html", ".css", ".js"))}
    assert "adadf_dist/html/base.html" in assets and assets <= set(names)
    assert any(name.endswith("LICENSE") for name in names)


def test_no_tracked_file_contains_a_local_path() -> None:
    found = subprocess.run(
        ["git", "grep", "-nIE", r"(^|[^A-Za-z0-9_.-])/(work|farm|root|home)/", "--", ".", ":!tests/test_package.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 1, found.stdout


def requirement_lists(project: dict[str, Any]) -> list[list[str]]:
    return [project["project"]["dependencies"], *project["project"]["optional-dependencies"].values()]


def test_pins_and_requirements_name_the_same_packages() -> None:
    pins = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().split() if "==" in line}
    required = {
        re.split(r"[\[><=]", requirement)[0].lower()
        for requirements in requirement_lists(tomllib.loads((ROOT / "pyproject.toml").read_text()))
        for requirement in requirements
    }
    assert len(required) > 15
    assert required - {"adadf_dist"} <= pins
