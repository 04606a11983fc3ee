"""A training step at the configured batch: does it fit, how long does it take, and what does that make of the run?"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from adadf_dist.check.dataset import DatasetInfo, validation_batches
from adadf_dist.check.environment import RankInfo, nodes_of
from adadf_dist.check.results import CheckResult, ProbeFailure, Status, gather_probe, group_failures
from adadf_dist.config.load import override
from adadf_dist.config.schema import Config
from adadf_dist.console.progress import duration
from adadf_dist.data.sampling import rank_slice
from adadf_dist.distributed.world import MIN_SAMPLES_PER_RANK, World, check_batch_size
from adadf_dist.errors import UserError
from adadf_dist.training.consistency import format_nodes
from adadf_dist.training.synthetic_step import SyntheticTrainer, synchronize

BUDGET_S = 8.0
MOST_STEPS = 20
SLOW_STEP_S = 15.0
"""A first step that is longer is the measurement: a run of such steps hardly needs a better one."""
MEMORY_WARNING_SHARE = 0.9
"""Share of the memory beyond which little is left for what comes later: evaluation, fragments."""
COMM_WARNING_SHARE = 0.5
"""Share of a step that exchange may take before it is worth a word."""


class StepTiming(NamedTuple):
    """On one rank."""

    step_s: float
    infer_s: float
    """The same rows in evaluation mode."""
    peak: int
    """Bytes of the device (as torch reserves it) or of the process."""
    limit: int
    """Bytes of the device, 0 for a CPU."""


def time_step(rehearsal: SyntheticTrainer, work: Callable[[], None]) -> float:
    """Of one go, after some to warm up; the number of goes is rank 0's. A collective of the rehearsal's world."""
    world = rehearsal.world
    first = world.broadcast_object(time_repeats(world, work, 1))
    assert isinstance(first, float)
    if first > SLOW_STEP_S:
        return first
    more = world.broadcast_object(time_repeats(world, work, 2) / 2 if first < 1 else first)
    assert isinstance(more, float)
    goes = max(1, min(MOST_STEPS, int(BUDGET_S / max(more, 1e-6))))
    return time_repeats(world, work, goes) / goes


def time_repeats(world: World, work: Callable[[], None], goes: int) -> float:
    synchronize(world.device)
    began = time.perf_counter()
    for _ in range(goes):
        work()
    synchronize(world.device)
    return time.perf_counter() - began


def check_batch(config: Config, world: World, faces: DatasetInfo) -> CheckResult:
    """Whether the global batch can be shared out over the ranks."""
    smallest = min(faces.batches)
    most = smallest // MIN_SAMPLES_PER_RANK
    try:
        check_batch_size(config.batch_size, world)
    except UserError as error:
        what, _, mend = str(error).rpartition(": ")
        return CheckResult("batch", what, Status.ERROR, mend)
    text = f"{config.batch_size} faces over {world.size} rank{'s' * (world.size > 1)}"
    if most < world.size:
        text += f", but the {faces.train:,} faces make batches of {smallest}, too few for {MIN_SAMPLES_PER_RANK} a rank"
        raised = "raise batch_size or " if sum(faces.batches) >= MIN_SAMPLES_PER_RANK * world.size else ""
        return CheckResult("batch", text, Status.ERROR, f"{raised}start fewer ranks")
    shares = sorted({smallest // world.size, -(-max(faces.batches) // world.size)})
    return CheckResult("batch", f"{text}: {' to '.join(map(str, shares))} a rank; {most:,} ranks at most")


def check_step(
    config: Config, world: World, ranks: Sequence[RankInfo], faces: DatasetInfo
) -> tuple[StepTiming | None, list[CheckResult]]:
    """A step of this rank's rows alone, which may fail without anybody waiting, then with all ranks. A collective.

    `config`: what `with_largest_batch` returns.
    """
    first, end = rank_slice(config.batch_size, world.rank, world.size)
    found = gather_probe(world, lambda: measure_single_rank(config, faces.classes, world.device, end - first))
    for reason, where in group_failures(found, [rank.label for rank in ranks]).items():
        mend = "" if "memory" not in reason.lower() else "lower batch_size or data.image_size, or start more ranks"
        return None, [CheckResult("step", f"on {format_nodes(where)}: {reason}", Status.ERROR, mend)]
    alone = [outcome for outcome in found if not isinstance(outcome, ProbeFailure)]
    if world.size == 1 and config.engine == "ddp":
        together = alone
    else:
        rehearsal = SyntheticTrainer(config, faces.classes, world)
        step_s, own = time_step(rehearsal, rehearsal.step), alone[world.rank]
        together = world.all_gather_object(own._replace(step_s=step_s, peak=max(own.peak, peak_memory(world.device))))
    step_s, computing = max(m.step_s for m in together), max(m.step_s for m in alone)
    text = f"{step_s:.3g} s, {config.batch_size / step_s:,.0f} images/s, {config.runtime.precision}"
    line = CheckResult("step", text)
    if world.size > 1:
        share = max(0.0, 1 - computing / step_s)
        line = CheckResult("step", f"{text}; {share:.0%} of it exchange and waiting for other ranks")
        if share > COMM_WARNING_SHARE:
            mend = "raise batch_size, use fewer ranks or a faster network; runtime.sync_batch_norm off exchanges less"
            line = line._replace(mark=Status.WARNING, mend=mend)
    infer = max(m.infer_s for m in alone)
    return together[0]._replace(step_s=step_s, infer_s=infer), [line, check_memory(together, ranks)]


def measure_single_rank(config: Config, num_classes: int, device: torch.device, rows: int) -> StepTiming:
    """Without any exchange. Raises whatever a step raises."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    config = override(config, {"engine": "ddp", "deepspeed.config": "", "batch_size": rows})
    rehearsal = SyntheticTrainer(config, num_classes, World(device))
    step_s, infer_s = time_step(rehearsal, rehearsal.step), time_step(rehearsal, rehearsal.infer)
    limit = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    return StepTiming(step_s, infer_s, peak_memory(device), limit)


def peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts it in KiB


def check_memory(measured: Sequence[StepTiming], ranks: Sequence[RankInfo]) -> CheckResult:
    """Of each device, or of a CPU node's ranks together."""
    if measured[0].limit:
        share, peak, limit = max((m.peak / m.limit, m.peak, m.limit) for m in measured)
        text = f"{peak / 2**30:.1f} GiB of the GPU's {limit / 2**30:.0f} at the peak of a step"
    else:
        peaks = {rank.label: m.peak for rank, m in zip(ranks, measured, strict=True)}
        nodes = [(sum(peaks[rank.label] for rank in node), node[0].memory) for node in nodes_of(ranks)]
        share, peak, limit = max((used / memory, used, memory) for used, memory in nodes)
        text = f"{max(peaks.values()) / 2**30:.1f} GiB a process at its peak, {peak / 2**30:.1f} of the node's "
        text += f"{limit / 2**30:.0f}, data workers not counted"
    if share > MEMORY_WARNING_SHARE:
        return CheckResult("memory", text, Status.WARNING, "lower batch_size or data.image_size, or start more ranks")
    return CheckResult("memory", text)


def estimate_duration(
    config: Config, faces: DatasetInfo, measured: StepTiming, faces_per_s: float
) -> Iterator[CheckResult]:
    """What the step and the loader make of an epoch and the run; `faces_per_s` of 0: not known."""
    trained = sum(faces.batches)
    computing = len(faces.batches) * measured.step_s
    loading = trained / faces_per_s if faces_per_s else 0.0
    passes = 2 if config.class_distributions.source == "pass" else 1
    epoch = max(computing, loading) + validation_batches(faces, config.batch_size) * measured.infer_s
    epoch += (passes - 1) * max(len(faces.batches) * measured.infer_s, loading)
    text = f"an epoch of {trained:,} faces about {duration(epoch)}, the run of {config.epochs} epochs about "
    text += duration(config.epochs * epoch)
    if not faces_per_s:
        text += ", if the loader keeps up (not measured)"
    if loading > computing:
        text += f"; the network waits for faces {1 - computing / loading:.0%} of the time"
        dali = "" if config.data.loader == "dali" or config.data.access == "stream" else "install DALI, "
        mend = f"raise data.workers where cores are idle, {dali}or train on a machine with more cores"
        yield CheckResult("time", text, Status.WARNING, mend)
    else:
        yield CheckResult("time", text)
