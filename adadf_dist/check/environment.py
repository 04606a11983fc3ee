"""Check the environment: versions, hosts, devices, threads and clocks."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from adadf_dist.config.schema import Config
from adadf_dist.console.formats import plural
from adadf_dist.data.workers.process import worker_context
from adadf_dist.distributed.environment import local_rank_from_env
from adadf_dist.distributed.nodes import format_nodes, rank_label
from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError
from adadf_dist.findings import Finding, Severity, ok, warning
from adadf_dist.training.consistency import find_config_mismatch, find_version_mismatch, installed_versions

CLOCK_ROUNDS = 5
MAX_CLOCK_SKEW_S = 1.0


class RankInfo(NamedTuple):
    """Properties of one rank."""

    label: str
    """Name of the rank in the report, of the form HOST (rank R)."""
    host: str
    local_rank: int
    device: str
    gpus: int
    """Number of GPUs on this rank's node that torch sees."""
    gpu_not_visible: bool
    """Whether the node has an NVIDIA device but torch sees none."""
    threads: int
    cores: int
    """Number of cores that this process may run on."""
    memory: int
    """Total memory of this rank's node, in bytes."""
    no_workers: UserError | None = None
    """Why worker processes cannot start on this rank's node; None if they can."""


def gather_rank_info(world: World) -> list[RankInfo]:
    """Gather info from all ranks. Collective: every rank must call this."""
    host, gpus = socket.gethostname(), torch.cuda.device_count()
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else world.device.type
    return world.all_gather_object(
        RankInfo(
            label=rank_label(world),
            host=host,
            local_rank=local_rank_from_env(),
            device=device,
            gpus=gpus,
            gpu_not_visible=gpus == 0 and Path("/dev/nvidia0").exists(),
            threads=torch.get_num_threads(),
            cores=len(os.sched_getaffinity(0)),
            memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            no_workers=why_no_workers(),
        )
    )


def why_no_workers() -> UserError | None:
    """Return why worker processes cannot start on this node; None if they can."""
    try:
        worker_context(__name__)
    except UserError as error:
        return error
    return None


def nodes_of(ranks: Sequence[RankInfo]) -> list[list[RankInfo]]:
    """Group the ranks by node: each local rank 0 begins a new node."""
    nodes: list[list[RankInfo]] = []
    for rank in ranks:
        if rank.local_rank == 0 or not nodes:
            nodes.append([])
        nodes[-1].append(rank)
    return nodes


def check_versions(config: Config, world: World) -> Iterator[Finding]:
    """Compare the versions and settings of all nodes. Collective: every rank must call this."""
    for name, problem in (
        ("versions", find_version_mismatch(world)),
        ("settings", find_config_mismatch(config, world)),
    ):
        if problem:
            yield Finding(name, Severity.ERROR, problem.message, problem.hint)
        elif name == "versions":
            own = installed_versions()
            digest, *others = (own.pop("the digest of adadf_dist's source files"), *own.items())
            text = ", ".join(f"{package} {version}" for package, version in others)
            cuda = f", CUDA {torch.version.cuda}" if world.device.type == "cuda" else ""
            yield ok(name, f"{text}{cuda}; source digest {digest}")


def judge_ranks(ranks: Sequence[RankInfo]) -> Finding:
    nodes = nodes_of(ranks)
    message = [
        f"{node[0].host} {' + '.join(f'{n} x {device}' for device, n in Counter(r.device for r in node).items())}"
        for node in nodes
    ]
    text = f"{plural(len(ranks), 'rank')} on {plural(len(nodes), 'node')}: {format_nodes(message)}"
    idle = [node[0].host for node in nodes if len(node) < node[0].gpus]
    if idle:
        gpus = nodes[0][0].gpus
        hint = f"start with --nproc_per_node {gpus} to use all of them"
        return warning("ranks", f"{text}; unused GPUs on {format_nodes(idle)}", hint)
    without_gpu = [node[0].host for node in nodes if node[0].gpu_not_visible]
    if without_gpu:
        hint = "check CUDA_VISIBLE_DEVICES, nvidia-smi, and whether torch is a CUDA build"
        return warning("ranks", f"{text}; torch sees no GPU on {format_nodes(without_gpu)}", hint)
    return ok("ranks", text)


def judge_workers(ranks: Sequence[RankInfo], config: Config) -> Finding:
    """Check that data workers can start if the loader needs them. DALI decodes in its own threads."""
    if config.data.loader == "dali" or config.data.num_workers == 0:
        return ok("workers", "not needed: each rank decodes in its own process")
    for rank in ranks:
        if rank.no_workers:
            problem = rank.no_workers
            return Finding("workers", Severity.ERROR, f"{problem.message} (on {rank.host})", problem.hint)
    return ok("workers", f"{plural(config.data.num_workers, 'data worker')} per rank can start")


def check_threads(ranks: Sequence[RankInfo], workers: int) -> Finding:
    """Check that the cores of each node are neither idle nor oversubscribed."""
    text = f"{plural(ranks[0].threads, 'thread')} and {plural(workers, 'data worker')} per rank"
    text += f"; {plural(ranks[0].cores, 'core')} per node"
    for node in nodes_of(ranks):
        cores, computing = node[0].cores, sum(rank.threads for rank in node)
        fair = max(cores // len(node), 1)
        if node[0].device != "cpu":
            if workers * len(node) > cores:
                more = f"{text}; {node[0].host} has too few cores for {workers * len(node)} workers"
                return warning("threads", more, f"pass --data.num_workers {fair}")
        elif computing > max(cores, len(node)):
            more = f"{text}; {computing} threads oversubscribe {plural(cores, 'core')} on {node[0].host}"
            return warning("threads", more, f"set OMP_NUM_THREADS={fair}")
        elif 2 * computing < cores:
            more = f"{text}; {cores - computing} cores are unused on {node[0].host}"
            return warning("threads", more, f"set OMP_NUM_THREADS={fair} (torchrun sets it to 1), or start more ranks")
    return ok("threads", text)


def clock_offsets(world: World, clock: Callable[[], float] = time.time) -> list[float]:
    """Return how many seconds each rank's clock is ahead of rank 0's, including the latency of one message.

    Collective: every rank must call this.
    """
    offsets = []
    for _ in range(CLOCK_ROUNDS):
        world.barrier()
        sent = world.broadcast_object(clock())
        assert isinstance(sent, float)
        offsets.append(clock() - sent)
    return world.all_gather_object(min(offsets))


def check_clocks(offsets: Sequence[float], labels: Sequence[str]) -> Finding:
    worst = max(range(len(offsets)), key=lambda rank: abs(offsets[rank]))
    apart = abs(offsets[worst])
    if apart <= MAX_CLOCK_SKEW_S:
        return ok("clocks", f"within {max(apart, 0.001):.3f} s of rank 0")
    direction = "ahead of" if offsets[worst] > 0 else "behind"
    text = f"the clock of {labels[worst]} is {apart:.1f} s {direction} rank 0's"
    return warning("clocks", text, "synchronize the clocks with NTP: logs and remote storage need the correct time")
