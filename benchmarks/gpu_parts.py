"""Parts of benchmarks/gpu_check.sh; each runs in its own process and prints its result after `figure: `.

python -m benchmarks.gpu_parts PART FOLDER    # with REHEARSE=1: tiny sizes, on any device
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.config.schema import Config
from adadf_dist.data.synthetic.dataset import build_synthetic_dataset
from adadf_dist.distributed.world import World, pick_device
from adadf_dist.train import Result, run
from benchmarks.loaders import Case, measure
from benchmarks.machine import describe_machine
from benchmarks.step import make_warm_trainer, rate

REHEARSE = bool(os.environ.get("REHEARSE"))
CORES = os.cpu_count() or 1
SIZE = 32 if REHEARSE else 100
"""Side of the stored images, in pixels."""
BATCH = 8 if REHEARSE else 256
STEPS = 1 if REHEARSE else 40


def make_config(size: int, batch: int, **more: object) -> Config:
    values: dict[str, object] = {"data.image_size": size, "batch_size": batch}
    values |= {key.replace("__", "."): value for key, value in more.items()}
    if REHEARSE:
        values |= {"data.image_size": 32, "batch_size": 8, "model.backbone": "resnet10", "runtime.compile": "off"}
    return build_config([ConfigLayer("gpu_check", values)])


def check_device(folder: Path) -> str:
    if not (torch.cuda.is_available() or REHEARSE):
        raise SystemExit("no GPU: torch.cuda.is_available() is False")
    import nvidia.dali as dali  # reported as a failure of this part, which comes first

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        print(f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free, {torch.cuda.get_device_properties(0)}")
    print(f"Python {sys.version}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    return f"{describe_machine()}, DALI {dali.__version__}, numba {numba.__version__}, numpy {np.__version__}"


def build_faces(folder: Path) -> str:
    train, workers = (48, 1) if REHEARSE else (12288, CORES)
    build_synthetic_dataset(folder, {"train": train, "validation": 16, "test": 16}, SIZE, workers=workers)
    return f"{train} synthetic faces of {SIZE}x{SIZE}"


def find_waits(folder: Path) -> str:
    """Run steps in which CUDA itself refuses whatever makes the host wait."""
    trainer = make_warm_trainer(make_config(100, 64), World(pick_device()))
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("error")
    for _ in range(3):
        trainer.step()
    return "no host wait in 3 training steps"


def measure_step(size: int, batch: int) -> str:
    return f"{rate(make_config(size, batch), STEPS):,.0f} images/s at {size}x{size}, batch {batch}, data excluded"


def measure_loader(folder: Path) -> str:
    case = Case(folder, SIZE, augment=True, batch=BATCH, workers=1 if REHEARSE else CORES - 4)
    names = ("adadf_dist dali", "limit: DALI decode")
    loader, decode = (measure(name, case, 0.1 if REHEARSE else 8.0).images_per_s for name in names)
    return f"{loader:,.0f} images/s augmented, {decode:,.0f} decoded only"


def measure_training(folder: Path) -> str:
    """Train from shards, and compare with steps on one batch, since waiting on the host hides behind queued steps."""
    epochs: list[Any] = []
    more = {"data__shards": str(folder), "data__loader": "dali", "out": str(folder.with_name("run"))}
    workers = 1 if REHEARSE else CORES - 4
    config = make_config(SIZE, BATCH, **more, epochs=2, data__num_workers=workers, evaluation__write_report=False)
    if not isinstance(run(config, epochs.append), Result):
        raise SystemExit("the run was stopped")
    speed, waiting = epochs[-1]["images_per_s"], epochs[-1]["data_wait_fraction"]
    alone = rate(config, STEPS)
    return f"{speed:,.0f} images/s end to end, {speed / alone:.2f} of the step alone, {waiting:.0%} waiting for data"


def measure_compile(folder: Path) -> str:
    plain = rate(make_config(SIZE, BATCH), STEPS)
    compiled = rate(make_config(SIZE, BATCH, runtime__compile="default"), STEPS)
    return f"{compiled:,.0f} images/s compiled, {compiled / plain:.2f} times as fast"


PARTS: dict[str, Callable[[Path], str]] = {
    "device": check_device,
    "faces": build_faces,
    "waits": find_waits,
    "step-64-224": lambda folder: measure_step(224, 64),
    "step-256-100": lambda folder: measure_step(100, 256),
    "step-1024-100": lambda folder: measure_step(100, 1024),
    "loader": measure_loader,
    "training": measure_training,
    "compile": measure_compile,
}


if __name__ == "__main__":
    print(f"figure: {PARTS[sys.argv[1]](Path(sys.argv[2]))}", flush=True)
