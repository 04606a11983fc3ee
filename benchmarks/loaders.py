"""Benchmark data loaders, from disk to the network's input, each in its own process."""

from __future__ import annotations

import argparse
import io
import itertools
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from tqdm import tqdm

from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.config.schema import Config
from adadf_dist.console.tables import align_columns
from adadf_dist.data.build.builder import BuildOptions, build_dataset
from adadf_dist.data.datamodule import DALI_LOADER, open_data
from adadf_dist.data.dataset import open_dataset
from adadf_dist.data.synthetic.dataset import make_synthetic_source
from adadf_dist.data.workers.task_pool import ProcessPool
from adadf_dist.distributed.world import pick_device
from adadf_dist.errors import UserError
from adadf_dist.files.outputs import write_output
from benchmarks.baseline_loop import transforms
from benchmarks.machine import describe_machine

STORED_SIZE = 100
SHARDS = 8
"""Number of tars: enough for every worker of a loader that assigns whole tars to workers."""


class Case(NamedTuple):
    """Configuration in which a loader is measured."""

    folder: Path
    """Dataset folder; its subfolder `files` contains the same images as single files."""
    size: int
    augment: bool
    batch: int
    workers: int

    @property
    def name(self) -> str:
        return f"{self.size}{' augmented' if self.augment else ''}"

    @property
    def device(self) -> torch.device:
        return pick_device()


class Found(NamedTuple):
    images_per_s: float
    memory_mb: float
    """Memory of the process and its workers at the end, minus the memory before the loader was created."""
    device_memory_mb: float


Epochs = Iterator[int]
"""The sizes of successive batches, over an endless sequence of epochs."""


def adadf_loader(loader: str, case: Case) -> Epochs:
    values: dict[str, object] = {"data.shards": str(case.folder), "data.image_size": case.size}
    values |= {"batch_size": case.batch, "data.num_workers": case.workers, "data.loader": loader}
    if not case.augment:
        values |= {"augment.policy": "none", "augment.flip_prob": 0.0, "augment.erase_prob": 0.0}
    config: Config = build_config([ConfigLayer("bench", values)])
    with open_data(config, 0, 1, case.device) as data:
        for epoch in itertools.count():
            for batch in data.train_batches(epoch):
                yield len(batch.labels)


def image_files(case: Case) -> Epochs:
    """Load batches conventionally: one file per image, torchvision's transforms and a DataLoader."""
    faces = ImageFolder(str(case.folder / "files"), transforms(case.size, case.augment))
    loader: Any = DataLoader(
        faces,
        case.batch,
        shuffle=True,
        num_workers=case.workers,
        persistent_workers=True,
        multiprocessing_context="forkserver",
        pin_memory=case.device.type == "cuda",
    )
    while True:
        for images, _ in loader:
            yield len(images.to(case.device, non_blocking=True))


def webdataset_torchvision(case: Case) -> Epochs:
    decode = partial(decode_one, transforms(case.size, case.augment))
    tars = [str(case.folder / shard) for shard in open_dataset(case.folder).split("train").shards]
    stream = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).shuffle(1000).to_tuple("jpg")
    batches = stream.map_tuple(decode).batched(case.batch)
    loader: Any = DataLoader(
        batches,
        batch_size=None,
        num_workers=min(case.workers, len(tars)),
        persistent_workers=True,
        multiprocessing_context="forkserver",
    )
    while True:
        for (images,) in loader:
            yield len(images)


def decode_one(transform: Callable[[Image.Image], torch.Tensor], encoded: bytes) -> torch.Tensor:
    return transform(Image.open(io.BytesIO(encoded)).convert("RGB"))


def dali_reader(case: Case) -> Epochs:
    from benchmarks.dali_native import reader_epochs  # DALI is optional

    split = open_dataset(case.folder).split("train")
    return reader_epochs(split, case.size, case.augment, case.batch, case.workers, case.device)


def raw_read(case: Case) -> Epochs:
    """Only read the encoded bytes of each image, in random order."""
    split = open_dataset(case.folder).split("train")
    while True:
        order = np.random.default_rng(0).permutation(len(split)).tolist()
        for start in range(0, len(order), case.batch):
            yield len([bytes(split.read(sample)) for sample in order[start : start + case.batch]])


def decode_only(case: Case) -> Epochs:
    """Only decode images with DALI."""
    from benchmarks.dali_native import decode_epochs

    split = open_dataset(case.folder).split("train")
    return decode_epochs(split, case.batch, case.workers, case.device, warp=False)


def decode_and_warp(case: Case) -> Epochs:
    """Decode images with DALI and apply one affine warp with a different matrix per image."""
    from benchmarks.dali_native import decode_epochs

    split = open_dataset(case.folder).split("train")
    return decode_epochs(split, case.batch, case.workers, case.device, warp=True)


CANDIDATES: dict[str, Callable[[Case], Epochs]] = {
    "adadf_dist dali": partial(adadf_loader, "dali"),
    "adadf_dist torch": partial(adadf_loader, "torch"),
    "files + torchvision": image_files,
    "webdataset + torchvision": webdataset_torchvision,
    "DALI reader + rand_augment": dali_reader,
    "limit: read": raw_read,
    "limit: DALI decode": decode_only,
    "DALI decode + one warp": decode_and_warp,
}
PLAIN = ("limit: read", "limit: DALI decode", "DALI decode + one warp")
"""Candidates measured in only one case, because size and augmentation do not affect them."""


def add_options(data: argparse.ArgumentParser) -> None:
    data.add_argument("--shards", type=Path, help="dataset directory (default: synthetic faces, 100x100)")
    data.add_argument("--num-samples", type=int, default=4096, help="number of synthetic faces (default: %(default)s)")
    data.add_argument("--image-sizes", type=int, nargs="+", default=[64, 100, 224], help="in px (default: 64 100 224)")
    data.add_argument("--batch-size", type=int, default=64, help="samples per batch (default: %(default)s)")
    data.add_argument("--num-workers", type=int, default=2, help="workers or threads per loader (default: %(default)s)")
    data.add_argument(
        "--seconds", type=float, default=3.0, help="seconds per measurement, after a warm-up (default: %(default)s)"
    )
    data.add_argument("--only", nargs="+", choices=CANDIDATES, default=list(CANDIDATES), metavar="NAME")
    data.set_defaults(run=bench_data)


def bench_data(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "faces"
        if options.shards is None:
            source = make_synthetic_source(
                {"train": options.num_samples, "validation": 64, "test": 64}, STORED_SIZE, seed=0
            )
            shards = BuildOptions(name="synthetic faces", samples_per_shard=max(options.num_samples // SHARDS, 1))
            build_dataset(source, folder, shards, ProcessPool(1))
        else:
            link_dataset(options.shards, folder)
        write_files(folder)
        figures = measure_all(folder, options)
    machine = describe_machine()
    print_table(figures, options)
    print(f"{options.num_workers} workers or threads per loader, batch {options.batch_size}; {machine}")
    if options.json is not None:
        report = {
            "machine": machine,
            "workers": options.num_workers,
            "batch_size": options.batch_size,
            "figures": figures,
        }
        write_output(options.json, report)


def link_dataset(shards: Path, folder: Path) -> None:
    """Create a folder that links to the user's shards, so that image files can be added to it."""
    open_dataset(shards)
    folder.mkdir()
    for path in shards.resolve().iterdir():
        (folder / path.name).symlink_to(path)


def write_files(folder: Path) -> None:
    split = open_dataset(folder).split("train")
    for sample in range(len(split)):
        path = folder / "files" / split.classes[split.labels[sample]] / f"{split.keys[sample]}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(split.read(sample))


def measure_all(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, list[Found]]]:
    """Return one result per round for each candidate and case. Every round measures all candidates in turn."""
    cases = [
        Case(folder, size, augment, options.batch_size, options.num_workers)
        for augment in (True, False)
        for size in options.image_sizes
    ]
    figures: dict[str, dict[str, list[Found]]] = {}
    rounds = [(name, case) for _ in range(options.repeat) for case in cases for name in options.only]
    for name, case in tqdm(rounds, unit="measurement", leave=False):
        if name in PLAIN and case != cases[0]:
            continue
        # own process: isolates memory and settings
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            try:
                found = alone.submit(measure, name, case, options.seconds).result()
            except ImportError as error:
                raise UserError(f"{name}: {error}; install it or exclude it with --only") from None
        figures.setdefault(name, {}).setdefault("" if name in PLAIN else case.name, []).append(found)
    return figures


def measure(name: str, case: Case, seconds: float) -> Found:
    torch.set_num_threads(1)  # as in a rank
    if "dali" in name.lower():  # exclude the memory of imports
        for module in (DALI_LOADER, "benchmarks.dali_native"):
            import_module(module)
    before = memory_mb()
    counts = CANDIDATES[name](case)
    split = len(open_dataset(case.folder).split("train"))
    seen = 0
    while seen < split:  # warm-up epoch: workers started, code compiled, files cached
        seen += next(counts)
    images, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        images += next(counts)
    if case.device.type == "cuda":
        torch.cuda.synchronize()
        passed = time.perf_counter() - began
    device_mb = torch.cuda.max_memory_reserved() / 2**20 if case.device.type == "cuda" else 0.0
    return Found(images / passed, memory_mb() - before, device_mb)


def memory_mb() -> float:
    """Return the memory of this process and its workers in MB; shared memory is counted once."""
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8") for pid in pids]
    return sum(int(re.findall(r"^Pss: +(\d+) kB", rollup, re.MULTILINE)[0]) for rollup in rollups) / 1024


def print_table(figures: dict[str, dict[str, list[Found]]], options: argparse.Namespace) -> None:
    columns = [f"{size}{word}" for word in (" augmented", "") for size in options.image_sizes]
    rows = [["images/s", *columns, "memory, MB"]]
    for name, row in figures.items():
        cells = [row.get(column, row.get("", [])) for column in columns]
        rates = [f"{median([f.images_per_s for f in found]):,.0f}" if found else "" for found in cells]
        memory = max(f.memory_mb for found in row.values() for f in found)
        rows.append([name, *rates, f"{memory:,.0f}"])
    rows += [[*row, ""] for row in compare(figures, columns)]
    print("\n".join(align_columns(rows)))


def compare(figures: dict[str, dict[str, list[Found]]], columns: Sequence[str]) -> Iterator[list[str]]:
    """Yield table rows with the speed of the DALI loader relative to each other candidate."""
    first = "adadf_dist dali"
    for name in figures:
        if first in figures and name != first and name not in PLAIN:
            ratios = [
                median([f.images_per_s for f in figures[first][c]]) / median([f.images_per_s for f in figures[name][c]])
                for c in columns
            ]
            yield [f"times {name}", *(f"{ratio:.2f}" for ratio in ratios)]
