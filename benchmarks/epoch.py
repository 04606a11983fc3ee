"""Time a complete one-epoch training process and compare it with a conventional loop."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torchvision

from adadf_dist.data.synthetic.dataset import build_synthetic_dataset
from adadf_dist.files.outputs import write_output
from benchmarks.baseline_loop import Work, baseline_epoch
from benchmarks.machine import describe_machine

STORED_SIZE, NETWORK_SIZE, BATCH = 100, 224, 64


class Ours(NamedTuple):
    """Measurements of a complete `adadf_dist.train` process."""

    seconds: float
    waiting: float
    """Fraction of the training pass spent waiting for data."""


def add_options(epoch: argparse.ArgumentParser) -> None:
    epoch.add_argument("--train", type=int, default=2048, help="training samples (default: %(default)s)")
    epoch.add_argument("--test", type=int, default=512, help="test samples (default: %(default)s)")
    epoch.add_argument("--only", choices=["both", "ours", "conventional"], default="both")
    epoch.set_defaults(run=bench_epoch)


def bench_epoch(options: argparse.Namespace) -> None:
    """Time both implementations; print their seconds, the ratio of the medians, and the machine."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = folder / "faces"
        # 16 validation samples: training requires some, and their cost is negligible
        counts = {"train": options.train, "validation": 16, "test": options.test}
        build_synthetic_dataset(shards, counts, size=STORED_SIZE)
        weights = folder / "random-resnet18.pt"
        torch.save(torchvision.models.resnet18(weights=None).state_dict(), weights)
        work = Work(shards, weights, NETWORK_SIZE, BATCH)
        seconds: dict[str, list[float]] = {"ours": [], "conventional": []}
        waiting: list[float] = []
        for number in range(options.repeat):
            if options.only != "conventional":
                ours = time_ours(work, folder / f"run-{number}")
                seconds["ours"].append(ours.seconds)
                waiting.append(ours.waiting)
            if options.only != "ours":
                seconds["conventional"].append(baseline_epoch(work))
    figures = {name: values for name, values in seconds.items() if values}
    report: dict[str, object] = {
        "faces": {"train": options.train, "test": options.test},
        "machine": describe_machine(),
        "seconds": figures,
    }
    for name, values in figures.items():
        print(f"{name:13s} {median(values):8.1f} s  (rounds: {', '.join(f'{v:.1f}' for v in values)})")
    if waiting:
        report["waiting"] = waiting
        print(f"adadf_dist waited for data during {median(waiting):.1%} of the training pass")
    if options.only == "both":
        ratio = median(seconds["conventional"]) / median(seconds["ours"])
        report["ratio"] = ratio
        print(f"adadf_dist is {ratio:.2f}x as fast; {report['machine']}")
    if options.json is not None:
        write_output(options.json, report)


def time_ours(work: Work, out: Path) -> Ours:
    """Time a complete training process of one epoch, including class distributions and the test."""
    command = [sys.executable, "-m", "adadf_dist.train", "--preset", "rafdb", "--epochs", "1"]
    command += ["--data.shards", str(work.shards), "--model.pretrained", str(work.weights), "--out", str(out)]
    command += ["--data.image_size", str(work.image_size), "--batch_size", str(work.batch_size)]
    command += ["--runtime.tensorboard", "false", "--evaluation.write_report", "false"]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    lines: Sequence[dict[str, Any]] = [
        json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return Ours(seconds, next(line["data_wait_fraction"] for line in lines if line["kind"] == "epoch"))
