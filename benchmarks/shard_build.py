"""Measure the speed and memory of building shards from a folder as large as AffectNet.

Run `python -m benchmarks.shard_build`. The folder contains synthetic faces. To save time, only a few hundred are
rendered; each file gets a unique comment after the JPEG header, so that no two files are identical.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from adadf_dist.console.exit import cli_errors
from adadf_dist.console.parser import make_parser
from adadf_dist.data.jpeg import encode
from adadf_dist.data.synthetic.faces import EMOTIONS, render_sample
from adadf_dist.errors import UserError
from shards.progress import Progress

DRAWN = 512
SIDE = 100
FILES_A_FOLDER = 10_000

PLAN = """
import resource, sys, time
import numpy as np, torch
from adadf_dist.data.dataset import open_dataset
from adadf_dist.data.sampling import epoch_batches
resident = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, began = resident(), time.perf_counter()
split = open_dataset(sys.argv[1]).split("train")
opened = time.perf_counter()
epoch_batches(split.labels, "balanced", 64, 0, 0)
print(opened - began, time.perf_counter() - opened, resident() - before)
"""


class ResourceUsage(NamedTuple):
    """Resources used by a command and all its subprocesses."""

    seconds: float
    memory_mb: float
    """Peak private memory of all processes together, sampled while the command runs."""


def make_tree(folder: Path, faces: int) -> None:
    """Write `faces` JPEGs of 100x100 pixels, as CLASS/PART/NUMBER.jpg in `folder`."""
    drawn = [render_sample(0, number, SIDE) for number in range(min(DRAWN, faces))]
    jpegs = [(face.label, encode(face.image).data) for face in drawn]
    with Progress("files", faces, "file") as progress:
        for number in range(faces):
            label, data = jpegs[number % len(jpegs)]
            part = folder / list(EMOTIONS)[label] / f"{number // FILES_A_FOLDER:03d}"
            part.mkdir(parents=True, exist_ok=True)
            comment = f"{number:08d}".encode()
            segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
            (part / f"{number:08d}.jpg").write_bytes(data[:2] + segment + data[2:])
            progress.update(1)


def run_and_measure(command: Sequence[str]) -> ResourceUsage:
    """Run a command and measure its time and memory. Raises `UserError` if it fails."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, sum(map(unique_memory_bytes, process_tree(process.pid))))
            time.sleep(0.2)
    if process.returncode:
        raise UserError(f"{' '.join(command)} failed with exit status {process.returncode}")
    return ResourceUsage(time.perf_counter() - began, peak / 2**20)


def process_tree(process: int) -> list[int]:
    """Return the IDs of a process and all its descendants (Linux only)."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="utf-8").split()
    except OSError:  # the process has ended
        return []
    return [process, *(member for child in children for member in process_tree(int(child)))]


def unique_memory_bytes(process: int) -> int:
    """Return the private memory of a process in bytes."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser("benchmarks.shard_build", __doc__)
    parser.add_argument(
        "--num-samples", type=int, default=280_000, help="number of 100x100 JPEGs (default: %(default)s)"
    )
    parser.add_argument(
        "--num-workers", type=int, default=len(os.sched_getaffinity(0)), help="worker processes (default: one per core)"
    )
    parser.add_argument("--dir", type=Path, help="working directory; needs 3 KB per image (default: temporary)")
    options = parser.parse_args(argv)
    with cli_errors("benchmarks.shard_build"), tempfile.TemporaryDirectory(dir=options.dir) as name:
        measure(Path(name), options.num_samples, options.num_workers)


def measure(folder: Path, faces: int, workers: int) -> None:
    make_tree(folder / "tree", faces)
    out = str(folder / "shards")
    source = ["folder", "--root", str(folder / "tree"), "--out", out]
    build = run_and_measure([sys.executable, "-m", "shards.build", *source, "--num-workers", str(workers)])
    verify = run_and_measure([sys.executable, "-m", "shards.verify", out, "--num-workers", str(workers)])
    done = subprocess.run([sys.executable, "-c", PLAN, out], check=True, capture_output=True, text=True)
    opened, planned, memory = map(float, done.stdout.split())
    print(f"{faces:,} JPEGs of {SIDE}x{SIDE}, {workers} workers, {platform.processor() or platform.machine()}")
    for name, spent in (("build", build), ("verify", verify)):
        rate = faces / spent.seconds
        print(
            f"{name:7s} {spent.seconds:7.1f} s  {rate:8,.0f} images/s  {rate / workers:7,.0f} per worker"
            f"  {spent.memory_mb:6,.0f} MB peak"
        )
    print(f"open the index {opened:.2f} s, plan a balanced epoch {planned:.2f} s, {memory:.0f} MB besides imports")
    print(json.dumps({"faces": faces, "build": build._asdict(), "verify": verify._asdict()}))


if __name__ == "__main__":
    main()
