"""Check the dataset: whether every rank can open it, and how fast samples are read, decoded and loaded."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adadf_dist.check.results import ProbeFailure, describe_error, gather_probe, group_failures
from adadf_dist.check.run_dir import restore_dirs
from adadf_dist.config.load import override
from adadf_dist.config.schema import Config
from adadf_dist.data.datamodule import open_splits
from adadf_dist.data.dataset import open_dataset
from adadf_dist.data.jpeg import InvalidImageError
from adadf_dist.data.loaders.base import decode_image
from adadf_dist.data.manifest import MANIFEST, read_manifest
from adadf_dist.data.prepare import find_shards_mismatch
from adadf_dist.data.remote.cache import cache_folder, check_cache, streamed_splits
from adadf_dist.data.remote.client import Remote, RetryPolicy, is_remote, local_path
from adadf_dist.data.sampling import MIN_SAMPLES_PER_RANK, epoch_batches
from adadf_dist.data.synthetic.faces import EMOTIONS
from adadf_dist.diagnostics.run_length import Length, find_problems
from adadf_dist.distributed.nodes import format_nodes, gather_per_node
from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError
from adadf_dist.findings import Finding, Severity, ok
from adadf_dist.training.synthetic_step import synchronize

MAX_SAMPLES = 512
READ_S = 2.0
LOADER_S = 4.0
QUICK_RETRY_POLICY = RetryPolicy(attempts=2, read_timeout_s=10.0)
PROBE_BYTES = 2**23


class DatasetInfo(NamedTuple):
    """Size of a run's dataset."""

    classes: int
    train: int
    """Number of training samples."""
    validation: int
    batches: tuple[int, ...]
    """Global batch sizes of the first epoch."""
    is_local: bool = False
    """Whether the dataset is on this node's disk."""
    test: int | None = None
    """Number of test samples; None if not known yet."""


class ReadRate(NamedTuple):
    samples: int
    megabytes_per_s: float
    samples_per_s: float
    """Number of samples that one process reads and decodes per second."""


def inspect_dataset(config: Config, world: World) -> tuple[DatasetInfo | None, Finding]:
    """Return the size of the dataset (None on error) and its report line. Collective: every rank must call this."""
    shards = config.data.shards
    if not shards:
        hint = "pass a dataset folder written by `python -m shards.build`"
        return None, Finding("shards", Severity.ERROR, "data.shards is not set", hint)
    try:
        remote = is_remote(shards)
    except UserError as error:
        return None, Finding("shards", Severity.ERROR, str(error))
    if remote:
        return inspect_remote_dataset(config, world)
    if config.data.synthetic_samples and not world.broadcast_object(local_path(shards).exists()):
        train, validation, test = config.data.synthetic_samples
        sizes = batch_sizes(config, np.zeros(train, dtype=np.int64))
        dataset = DatasetInfo(len(EMOTIONS), train, validation, sizes, test=test)
        samples = f"{sum(config.data.synthetic_samples):,} synthetic samples"
        return dataset, ok("shards", f"{shards}: not found; a run would generate {samples} there")
    if problem := find_shards_mismatch(config.data, world):
        return None, Finding("shards", Severity.ERROR, problem.message, problem.hint)
    found = gather_probe(world, lambda: inspect_local_dataset(config, world))
    own = found[world.rank]
    if wrong := next((f for f in found if isinstance(f, ProbeFailure)), None):
        return None, Finding("shards", Severity.ERROR, wrong.reason)
    assert isinstance(own, DatasetInfo)
    return own, ok("shards", f"{shards}: {describe(own)}, available on every rank")


def inspect_local_dataset(config: Config, world: World) -> DatasetInfo:
    """Open the splits on this rank as training does, and return their sizes. Raises `UserError` if this fails."""
    data = open_splits(config, local_path(config.data.shards), (world.rank, world.size), world.device)
    with closing(data.loader):
        sizes = batch_sizes(config, data.train_split.labels)
        test = len(data.test_split) if data.test_split is not None else 0
        return DatasetInfo(len(data.classes), len(data.train_split), len(data.validation_split), sizes, True, test)


def batch_sizes(config: Config, labels: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> tuple[int, ...]:
    """Return the size of each global batch of the first epoch."""
    return tuple(map(len, epoch_batches(labels, config.data.sampler, config.batch_size, config.seed, 0)))


def describe(dataset: DatasetInfo) -> str:
    return f"{dataset.train:,} training and {dataset.validation:,} validation samples, {dataset.classes} classes"


def inspect_remote_dataset(config: Config, world: World) -> tuple[DatasetInfo | None, Finding]:
    """Check a remote dataset from each node by reading dataset.json and a few megabytes of a tar.

    Collective: every rank must call this.
    """
    found = gather_per_node(world, lambda: probe(config))
    problems = {node: report for node, report in found.items() if isinstance(report, str)}
    if problems:
        reason = next(iter(problems.values()))
        return None, Finding("shards", Severity.ERROR, f"on {format_nodes(list(problems))}: {reason}")
    reports = [report for report in found.values() if not isinstance(report, str)]
    counts, validation, size = reports[0][:3]
    rate = min(report[3] for report in reports)
    labels = np.repeat(np.arange(len(counts)), counts)
    if not validation:
        validation = round(config.data.validation_fraction * len(labels))
        labels = labels[validation:]
    dataset = DatasetInfo(len(counts), len(labels), validation, batch_sizes(config, labels))
    text = f"{config.data.shards}: {describe(dataset)}; {size / 1e9:.2f} GB at {rate:.1f} MB/s on the slowest node"
    return dataset, ok("shards", f"{text}: {size / 1e6 / rate:,.0f} s to download, unless cached")


def probe(config: Config) -> tuple[tuple[int, ...], int, int, float] | str:
    """Return (training samples per class, validation samples, bytes of all tars, MB/s), or an error message."""
    try:
        remote = Remote(config.data.shards.rstrip("/"), QUICK_RETRY_POLICY)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / MANIFEST).write_bytes(remote.read(MANIFEST))
            manifest = read_manifest(Path(folder))
        if "train" not in manifest.splits:
            return f"{remote.url}: has no train split; build one with python -m shards.build"
        train = manifest.splits["train"]
        first = train.shards[0]
        began = time.perf_counter()
        size = sum(map(len, remote.chunks(first.file, 0, min(first.bytes, PROBE_BYTES))))
        rate = size / 1e6 / max(time.perf_counter() - began, 1e-9)
        with restore_dirs(cache_folder(config.data) / "locks"):
            check_cache(config.data)
    except (UserError, OSError) as error:
        return describe_error(error)
    total_bytes = sum(shard.bytes for split in manifest.splits.values() for shard in split.shards)
    validation = manifest.splits["validation"].samples if "validation" in manifest.splits else 0
    return tuple(train.class_counts), validation, total_bytes, rate


def check_schedule(config: Config, dataset: DatasetInfo) -> list[Finding]:
    """Return a warning for each setting that does not suit the length of the run, or an ok line if there is none."""
    steps_per_epoch = len(dataset.batches)
    problems = find_problems(config, steps_per_epoch)
    if not problems:
        return [ok("schedule", f"{Length(config.epochs, steps_per_epoch)}")]
    return [replace(problem, name="schedule") for problem in problems]


def check_read_rate(config: Config, world: World, labels: Sequence[str]) -> Finding:
    """Measure how fast each rank reads and decodes random samples. Collective: every rank must call this."""
    found = gather_probe(world, lambda: measure_read_rate(config, world.rank))
    for reason, where in group_failures(found, labels).items():
        return Finding("reading", Severity.ERROR, f"on {format_nodes(where)}: {reason}")
    rates = [rate for rate in found if isinstance(rate, ReadRate)]
    slowest = min(rates, key=lambda rate: rate.samples_per_s)
    text = f"{slowest.samples} random samples: read at {slowest.megabytes_per_s:,.0f} MB/s (may be cached), "
    text += f"read and decoded at {slowest.samples_per_s:,.0f} samples/s per process"
    return ok("reading", text + (", on the slowest rank" if world.size > 1 else ""))


def measure_read_rate(config: Config, rank: int) -> ReadRate:
    """Measure the read rate on this rank. Raises `UserError` naming a sample that fails to decode."""
    split = open_dataset(local_path(config.data.shards), streamed_splits(config.data)).split("train")
    samples = np.random.default_rng().permutation(len(split))[:MAX_SAMPLES].tolist()
    count, size, reading, began = 0, 0, 0.0, time.perf_counter()
    for sample in samples:
        start = time.perf_counter()
        encoded = bytes(split.read(sample))
        reading += time.perf_counter() - start
        try:
            decode_image(encoded)
        except InvalidImageError as reason:
            raise UserError(
                f"sample {split.keys[sample]} of {split.folder}: {reason}; run python -m shards.verify to list all bad "
                "samples"
            ) from None
        count, size = count + 1, size + len(encoded)
        if time.perf_counter() - began > READ_S:
            break
    seconds = time.perf_counter() - began
    return ReadRate(count, size / 1e6 / max(reading, 1e-9), count / max(seconds, 1e-9))


def check_loader(config: Config, world: World, labels: Sequence[str]) -> tuple[float, Finding]:
    """Return the loader's rate in samples per second over all ranks (0 on error), and its report line.

    Collective: every rank must call this.
    """
    found = gather_probe(world, lambda: measure_loader_rate(config, world))
    for reason, where in group_failures(found, labels).items():
        return 0.0, Finding("loader", Severity.ERROR, f"on {format_nodes(where)}: {reason}")
    rates = [rate for rate in found if not isinstance(rate, ProbeFailure)]
    together = world.size * min(rates)  # all ranks wait for the slowest
    text = f"{config.data.loader}, {config.data.image_size}x{config.data.image_size}, augmented: "
    return together, ok("loader", f"{text}{together:,.0f} samples/s over all ranks, limited by the slowest")


def measure_loader_rate(config: Config, world: World) -> float:
    """Return how many samples per second this rank loads, measured after the first batch."""
    data = open_splits(config, local_path(config.data.shards), (world.rank, world.size), world.device)
    with closing(data.loader):
        batches = data.train_batches(0)
        began = time.perf_counter()
        first = next(batches, None)
        count = 0 if first is None else len(first.labels)
        synchronize(world.device)
        started, after = time.perf_counter(), 0
        for batch in batches:
            after += len(batch.labels)
            synchronize(world.device)
            if time.perf_counter() - started > LOADER_S:
                break
        ended = time.perf_counter()
    return after / (ended - started) if after else count / max(ended - began, 1e-9)


def with_largest_batch(config: Config, dataset: DatasetInfo, world: World) -> Config:
    """Return the config for measuring a step: without compilation, and with the largest batch of the first epoch."""
    largest = max(*dataset.batches, MIN_SAMPLES_PER_RANK * world.size)
    return override(config, {"runtime.compile": "off", "batch_size": largest})
