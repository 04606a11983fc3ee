"""Measure the duration and memory of a training step with the configured batch, and estimate the run's duration."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from adadf_dist.check.dataset import DatasetInfo
from adadf_dist.check.environment import RankInfo, nodes_of
from adadf_dist.check.results import ProbeFailure, gather_probe, group_failures
from adadf_dist.config.load import override
from adadf_dist.config.schema import Config
from adadf_dist.console.formats import format_duration, plural
from adadf_dist.data.sampling import MIN_SAMPLES_PER_RANK, check_batch_size, rank_slice
from adadf_dist.distributed.nodes import format_nodes
from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError
from adadf_dist.findings import Finding, Severity, ok, warning
from adadf_dist.training.synthetic_step import SyntheticTrainer, synchronize

BUDGET_S = 8.0
MOST_STEPS = 20
SLOW_STEP_S = 15.0
"""If the first step takes longer than this, its time is the result and no further steps are timed."""
MEMORY_WARNING_FRACTION = 0.9
"""Fraction of memory in use above which a warning says that too little is left for evaluation and fragmentation."""
COMM_WARNING_FRACTION = 0.5
"""Fraction of a step spent in communication that triggers a warning."""


class StepTiming(NamedTuple):
    """Duration and memory of a training step, measured on one rank."""

    step_s: float
    infer_s: float
    """Seconds for the same batch in evaluation mode."""
    peak: int
    """Peak memory in bytes: GPU memory reserved by torch, or memory of the process on a CPU."""
    limit: int
    """Total GPU memory in bytes; 0 on a CPU."""


def time_step(trainer: SyntheticTrainer, work: Callable[[], None]) -> float:
    """Return the mean duration in seconds of a call to `work` after a warm-up. Rank 0 chooses the number of calls.

    Collective over the ranks of `trainer`: every rank must call this.
    """
    world = trainer.world
    first = world.broadcast_object(time_repeats(world, work, 1))
    assert isinstance(first, float)
    if first > SLOW_STEP_S:
        return first
    more = world.broadcast_object(time_repeats(world, work, 2) / 2 if first < 1 else first)
    assert isinstance(more, float)
    repeats = max(1, min(MOST_STEPS, int(BUDGET_S / max(more, 1e-6))))
    return time_repeats(world, work, repeats) / repeats


def time_repeats(world: World, work: Callable[[], None], repeats: int) -> float:
    synchronize(world.device)
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize(world.device)
    return time.perf_counter() - began


def check_batch(config: Config, world: World, dataset: DatasetInfo) -> Finding:
    """Check that the global batch can be distributed over the ranks."""
    smallest = min(dataset.batches)
    most = smallest // MIN_SAMPLES_PER_RANK
    try:
        check_batch_size(config.batch_size, world.size)
    except UserError as error:
        return Finding("batch", Severity.ERROR, error.message, error.hint)
    text = f"{config.batch_size} samples over {plural(world.size, 'rank')}"
    if most < world.size:
        text += (
            f", but {dataset.train:,} training samples give a batch of only {smallest}, fewer than "
            f"{MIN_SAMPLES_PER_RANK} per rank"
        )
        raised = "raise batch_size or " if sum(dataset.batches) >= MIN_SAMPLES_PER_RANK * world.size else ""
        return Finding("batch", Severity.ERROR, text, f"{raised}start fewer ranks")
    sizes = sorted({smallest // world.size, -(-max(dataset.batches) // world.size)})
    return ok("batch", f"{text}: {' to '.join(map(str, sizes))} per rank; at most {most:,} ranks")


def check_step(
    config: Config, world: World, ranks: Sequence[RankInfo], dataset: DatasetInfo
) -> tuple[StepTiming | None, list[Finding]]:
    """Measure a step on each rank alone, where a failure does not block other ranks, and then on all ranks together.

    Collective: every rank must call this. `config`: the result of `with_largest_batch`.
    """
    first, end = rank_slice(config.batch_size, world.rank, world.size)
    found = gather_probe(world, lambda: measure_single_rank(config, dataset.classes, world.device, end - first))
    for reason, where in group_failures(found, [rank.label for rank in ranks]).items():
        hint = "" if "memory" not in reason.lower() else "lower batch_size or data.image_size, or start more ranks"
        return None, [Finding("step", Severity.ERROR, f"on {format_nodes(where)}: {reason}", hint)]
    alone = [outcome for outcome in found if not isinstance(outcome, ProbeFailure)]
    if world.size == 1 and config.engine == "ddp":
        together = alone
    else:
        trainer = SyntheticTrainer(config, dataset.classes, world)
        step_s, own = time_step(trainer, trainer.step), alone[world.rank]
        together = world.all_gather_object(own._replace(step_s=step_s, peak=max(own.peak, peak_memory(world.device))))
    step_s, computing = max(m.step_s for m in together), max(m.step_s for m in alone)
    text = f"{describe_speed(config, step_s)}, {config.runtime.precision}"
    line = ok("step", text)
    if world.size > 1:
        fraction = max(0.0, 1 - computing / step_s)
        text += f"; {fraction:.0%} spent in communication and waiting"
        hint = "raise batch_size, use fewer ranks or a faster network, or turn runtime.sync_batch_norm off"
        line = warning("step", text, hint) if fraction > COMM_WARNING_FRACTION else ok("step", text)
    infer = max(m.infer_s for m in alone)
    return together[0]._replace(step_s=step_s, infer_s=infer), [line, check_memory(together, ranks)]


def measure_single_rank(config: Config, num_classes: int, device: torch.device, rows: int) -> StepTiming:
    """Measure a step on this rank alone, without communication. Lets errors of the step propagate."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    config = override(config, {"engine": "ddp", "deepspeed.config_file": "", "batch_size": rows})
    return measure_trainer(SyntheticTrainer(config, num_classes, World(device)))


def measure_trainer(trainer: SyntheticTrainer) -> StepTiming:
    """Measure a training step, a pass in evaluation mode, and peak memory. Collective over the ranks of `trainer`."""
    device = trainer.world.device
    step_s, infer_s = time_step(trainer, trainer.step), time_step(trainer, trainer.infer)
    limit = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    return StepTiming(step_s, infer_s, peak_memory(device), limit)


def describe_speed(config: Config, step_s: float) -> str:
    return f"{step_s:.3g} s, {config.batch_size / step_s:,.0f} images/s"


def peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux


def check_memory(measured: Sequence[StepTiming], ranks: Sequence[RankInfo]) -> Finding:
    """Check peak memory per device, or per node for CPU ranks."""
    if measured[0].limit:
        fraction, peak, limit = max((m.peak / m.limit, m.peak, m.limit) for m in measured)
        text = f"peak {peak / 2**30:.1f} of {limit / 2**30:.0f} GiB GPU memory during a step"
    else:
        peaks = {rank.label: m.peak for rank, m in zip(ranks, measured, strict=True)}
        nodes = [(sum(peaks[rank.label] for rank in node), node[0].memory) for node in nodes_of(ranks)]
        fraction, peak, limit = max((used / memory, used, memory) for used, memory in nodes)
        text = f"peak {max(peaks.values()) / 2**30:.1f} GiB per process, {peak / 2**30:.1f} of {limit / 2**30:.0f} GiB "
        text += "per node, excluding data workers"
    if fraction > MEMORY_WARNING_FRACTION:
        return warning("memory", text, "lower batch_size or data.image_size, or start more ranks")
    return ok("memory", text)


def estimate_duration(
    config: Config, dataset: DatasetInfo, measured: StepTiming, samples_per_s: float
) -> Iterator[Finding]:
    """Estimate the duration of an epoch and of the run. `samples_per_s`: rate of the loader, 0 if unknown."""
    trained = sum(dataset.batches)
    computing = len(dataset.batches) * measured.step_s
    if config.model.cached_augmentations:  # images are loaded only before the first epoch
        samples_per_s = 0.0
    loading = trained / samples_per_s if samples_per_s else 0.0
    passes = 2 if config.class_distributions.source == "second_pass" else 1
    epoch = max(computing, loading) + math.ceil(dataset.validation / config.batch_size) * measured.infer_s
    epoch += (passes - 1) * max(len(dataset.batches) * measured.infer_s, loading)
    text = f"an epoch of {trained:,} samples takes about {format_duration(epoch)}, all {config.epochs} epochs about "
    text += format_duration(config.epochs * epoch)
    if not samples_per_s:
        text += ", if the loader keeps up (not measured)"
    if loading > computing:
        text += f"; data-bound: the network would wait for data {1 - computing / loading:.0%} of the time"
        dali = "" if config.data.loader == "dali" or config.data.access == "stream" else "install DALI, "
        hint = f"raise data.num_workers if cores are idle, {dali}or train on a machine with more cores"
        yield warning("time", text, hint)
    else:
        yield ok("time", text)
