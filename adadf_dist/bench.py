"""Measure, side by side in one run: `python -m adadf_dist.bench epoch`.

Timings on shared machines wander, so what counts is the ratio of two measurements of the same work.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torchvision

from adadf_dist.bench_conventional import Work, conventional_epoch
from adadf_dist.data.embedded import build_embedded
from adadf_dist.errors import one_line_errors

STORED_SIZE, NETWORK_SIZE, BATCH = 100, 224, 64


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m adadf_dist.bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    epoch = commands.add_parser(
        "epoch",
        help="one whole training process of one epoch, against a conventional loop over the same faces",
        description="Train one epoch and test, whole process: adadf_dist against a conventional loop (PIL decode and "
        "transforms, DataLoader, fp32, NCHW, a second full pass for the class distributions). Faces are stored "
        f"{STORED_SIZE}x{STORED_SIZE} and trained at {NETWORK_SIZE}x{NETWORK_SIZE}, batch {BATCH}, extractor frozen.",
    )
    epoch.add_argument("--train", type=int, default=2048, help="training faces (default: %(default)s)")
    epoch.add_argument("--test", type=int, default=512, help="test faces (default: %(default)s)")
    epoch.add_argument("--repeat", type=int, default=1, help="rounds of both, interleaved (default: %(default)s)")
    epoch.add_argument("--only", choices=["both", "ours", "conventional"], default="both")
    epoch.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(argv)
    with one_line_errors("adadf_dist.bench"):
        bench_epoch(options)


def bench_epoch(options: argparse.Namespace) -> None:
    """Print seconds of both, the medians' ratio, and what machine this was."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = folder / "faces"
        # 16 validation faces: training needs some, and their cost vanishes beside the test's
        counts = {"train": options.train, "validation": 16, "test": options.test}
        build_embedded(shards, counts, size=STORED_SIZE)
        weights = folder / "random-resnet18.pt"
        torch.save(torchvision.models.resnet18(weights=None).state_dict(), weights)
        work = Work(shards, weights, NETWORK_SIZE, BATCH)
        seconds: dict[str, list[float]] = {"ours": [], "conventional": []}
        for number in range(options.repeat):
            if options.only != "conventional":
                seconds["ours"].append(time_ours(work, folder / f"run-{number}"))
            if options.only != "ours":
                seconds["conventional"].append(conventional_epoch(work))
    figures = {name: values for name, values in seconds.items() if values}
    report: dict[str, object] = {
        "faces": {"train": options.train, "test": options.test},
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"{torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'}, torch {torch.__version__}",
        "seconds": figures,
    }
    for name, values in figures.items():
        print(f"{name:13s} {median(values):8.1f} s  (rounds: {', '.join(f'{v:.1f}' for v in values)})")
    if options.only == "both":
        ratio = median(seconds["conventional"]) / median(seconds["ours"])
        report["ratio"] = ratio
        print(f"ours is {ratio:.2f} times as fast; {report['machine']}")
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def time_ours(work: Work, out: Path) -> float:
    """Seconds of a whole `adadf_dist.train` process: one epoch, class distributions and the test included."""
    command = [sys.executable, "-m", "adadf_dist.train", "--preset", "rafdb", "--epochs", "1"]
    command += ["--data.shards", str(work.shards), "--model.pretrained", str(work.weights), "--out", str(out)]
    command += ["--data.image_size", str(work.image_size), "--batch_size", str(work.batch_size)]
    command += ["--runtime.tensorboard", "false"]
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


if __name__ == "__main__":
    main()
