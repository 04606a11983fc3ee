"""The check for a machine with a GPU, run on the CPU with tiny sizes, and the packages that it brings there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks.gpu_parts import PARTS

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CHECK, PACKAGES = BENCHMARKS / "gpu_check.sh", BENCHMARKS / "gpu_packages.sh"


def check(tmp_path: Path, **env: str) -> tuple[int, list[list[str]]]:
    """Run the check; return its exit status and the rows of the table: part, status, seconds and figure."""
    given = {"PYTHON": sys.executable, "OUT": str(tmp_path / "out"), **env}
    done = subprocess.run([CHECK, "--rehearse"], env=os.environ | given, capture_output=True, text=True)
    _, _, table = done.stdout.partition("\npart ")
    return done.returncode, [line.split(maxsplit=3) for line in table.splitlines()[1:-1]]


def test_limits_of_the_parts_add_up_to_ten_minutes() -> None:
    limits = {name: int(limit) for name, limit in re.findall(r"^(?:part|run) (\S+) (\d+)", CHECK.read_text(), re.M)}
    assert set(limits) == {*PARTS, "tests"}
    assert sum(limits.values()) <= 600


def test_failed_part_does_not_stop_the_next(tmp_path: Path) -> None:
    status, rows = check(tmp_path, PYTHON="false", PARTS="device waits loader")
    assert status == 1
    assert [row[:2] for row in rows] == [[name, "failed"] for name in ("device", "waits", "loader")]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_part_runs_on_the_cpu(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    status, rows = check(tmp_path)
    assert {row[0]: row[1] for row in rows} == dict.fromkeys([*PARTS, "tests"], "ok")
    assert status == 0
    figures = {row[0]: row[3] for row in rows}
    assert "passed" in figures["tests"]
    assert all("images/s" in figures[name] for name in PARTS if name.startswith(("step", "loader", "training")))


def test_packages_travel_in_pieces(tmp_path: Path) -> None:
    """A stand-in for pip provides the wheels."""
    pip = tmp_path / "python"
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    content = os.urandom(50_000)
    for name in ("wanted", "numpy"):
        with zipfile.ZipFile(wheels / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/data.bin", content)
            wheel.writestr(f"{name}/x.cpython-311-x86_64.so", "")
            wheel.writestr(f"{name}/x.cpython-312-x86_64.so", "")
    pip.write_text(
        "#!/usr/bin/env bash\n"
        'if [ "$2" != pip ]; then exec "' + sys.executable + '" "$@"; fi\n'
        'while [ "$1" != --dest ]; do shift; done\n'
        f'cp -r "{wheels}" "$2"\n'
    )
    pip.chmod(0o755)
    env = os.environ | {"PYTHON": str(pip), "PIECE": "20000"}
    subprocess.run([PACKAGES, "collect", tmp_path / "pieces"], env=env, check=True, capture_output=True)
    pieces = sorted((tmp_path / "pieces").iterdir())
    assert len(pieces) >= 3
    assert all(piece.stat().st_size <= 20000 for piece in pieces)
    subprocess.run([PACKAGES, "unpack", tmp_path / "pieces", tmp_path / "site"], check=True)
    found = sorted(str(path.relative_to(tmp_path / "site")) for path in (tmp_path / "site").rglob("*.*"))
    assert found == ["wanted/data.bin", "wanted/x.cpython-312-x86_64.so"]
    assert (tmp_path / "site/wanted/data.bin").read_bytes() == content
