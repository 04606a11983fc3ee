"""Who takes part: versions, hosts, devices, threads, clocks."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from adadf_dist.check.results import Line, Mark
from adadf_dist.config.schema import Config
from adadf_dist.data.workers.process import worker_context
from adadf_dist.distributed.world import World, local_rank_in_environment
from adadf_dist.errors import UserError
from adadf_dist.training.consistency import (
    installation,
    name_places,
    place_of,
    unlike_installations,
    unlike_settings,
)

CLOCK_ROUNDS = 5
CLOCKS_AGREE_S = 1.0


class Rank(NamedTuple):
    """One process of the run."""

    place: str
    """HOST (rank R)."""
    host: str
    local_rank: int
    device: str
    gpus: int
    """GPUs of its node that torch sees."""
    unseen_gpu: bool
    """There is an NVIDIA device on the node, and torch sees none."""
    threads: int
    cores: int
    """That this process may run on."""
    memory: int
    """Of its node, in bytes."""
    no_workers: str = ""
    """Why worker processes cannot start here; empty where they can."""


def survey(world: World) -> list[Rank]:
    """All ranks, on every rank. A collective."""
    host, gpus = socket.gethostname(), torch.cuda.device_count()
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else world.device.type
    return world.collect(
        Rank(
            place=place_of(world),
            host=host,
            local_rank=local_rank_in_environment(),
            device=device,
            gpus=gpus,
            unseen_gpu=gpus == 0 and Path("/dev/nvidia0").exists(),
            threads=torch.get_num_threads(),
            cores=len(os.sched_getaffinity(0)),
            memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            no_workers=why_no_workers(),
        )
    )


def why_no_workers() -> str:
    """Why worker processes cannot start on this node; empty where they can."""
    try:
        worker_context(__name__)
    except UserError as error:
        return str(error)
    return ""


def nodes_of(ranks: Sequence[Rank]) -> list[list[Rank]]:
    """The ranks by node: a node begins with its local rank 0."""
    nodes: list[list[Rank]] = []
    for rank in ranks:
        if rank.local_rank == 0 or not nodes:
            nodes.append([])
        nodes[-1].append(rank)
    return nodes


def check_alike(config: Config, world: World) -> Iterator[Line]:
    """Versions and settings. A collective."""
    for name, problem in (
        ("versions", unlike_installations(world)),
        ("settings", unlike_settings(config, world)),
    ):
        if problem:
            what, _, mend = problem.partition(": ")
            yield Line(name, what, Mark.ERROR, mend)
        elif name == "versions":
            own = installation()
            digest, *others = (own.pop("the digest of adadf_dist's source files"), *own.items())
            told = ", ".join(f"{package} {version}" for package, version in others)
            cuda = f", CUDA {torch.version.cuda}" if world.device.type == "cuda" else ""
            yield Line(name, f"{told}{cuda}; digest of our sources {digest}")


def judge_ranks(ranks: Sequence[Rank]) -> Line:
    nodes = nodes_of(ranks)
    told = [
        f"{node[0].host} {' + '.join(f'{n} x {device}' for device, n in Counter(r.device for r in node).items())}"
        for node in nodes
    ]
    text = f"{counted(len(ranks), 'rank')} on {counted(len(nodes), 'node')}: {name_places(told)}"
    idle = [node[0].host for node in nodes if len(node) < node[0].gpus]
    if idle:
        gpus = nodes[0][0].gpus
        mend = f"--nproc_per_node {gpus} uses them all"
        return Line("ranks", f"{text}; GPUs are idle on {name_places(idle)}", Mark.WARNING, mend)
    unseen = [node[0].host for node in nodes if node[0].unseen_gpu]
    if unseen:
        mend = "look at CUDA_VISIBLE_DEVICES, nvidia-smi, and whether this torch is built for CUDA"
        return Line("ranks", f"{text}; torch does not see the GPU of {name_places(unseen)}", Mark.WARNING, mend)
    return Line("ranks", text)


def judge_workers(ranks: Sequence[Rank], config: Config) -> Line:
    """Whether data workers can start where the loader needs them. DALI decodes in threads of its own."""
    if config.data.loader == "dali" or config.data.workers == 0:
        return Line("workers", "not needed: data is decoded in the rank's own process")
    for rank in ranks:
        if rank.no_workers:
            problem, _, fix = rank.no_workers.rpartition("; ")
            return Line("workers", f"{problem} (on {rank.host})", Mark.ERROR, fix)
    return Line("workers", f"{counted(config.data.workers, 'data worker')} per rank can start")


def judge_threads(ranks: Sequence[Rank], workers: int) -> Line:
    """Whether the cores of each node are used, and not fought for."""
    text = f"{counted(ranks[0].threads, 'thread')} and {counted(workers, 'data worker')} a rank"
    text += f"; {counted(ranks[0].cores, 'core')} a node"
    for node in nodes_of(ranks):
        cores, computing = node[0].cores, sum(rank.threads for rank in node)
        fair = max(cores // len(node), 1)
        if node[0].device != "cpu":
            if workers * len(node) > cores:
                more = f"{text}; {node[0].host} has too few for {workers * len(node)} workers"
                return Line("threads", more, Mark.WARNING, f"--data.workers {fair}")
        elif computing > max(cores, len(node)):
            more = f"{text}; on {node[0].host} {computing} threads fight for them"
            return Line("threads", more, Mark.WARNING, f"set OMP_NUM_THREADS={fair}")
        elif 2 * computing < cores:
            more = f"{text}; on {node[0].host} {cores - computing} of them are idle"
            return Line(
                "threads", more, Mark.WARNING, f"set OMP_NUM_THREADS={fair} (torchrun sets 1), or start more ranks"
            )
    return Line("threads", text)


def clock_offsets(world: World, clock: Callable[[], float] = time.time) -> list[float]:
    """Seconds by which each rank's clock is ahead of rank 0's, too large by one fast message. A collective."""
    offsets = []
    for _ in range(CLOCK_ROUNDS):
        world.barrier()
        sent = world.share(clock())
        assert isinstance(sent, float)
        offsets.append(clock() - sent)
    return world.collect(min(offsets))


def judge_clocks(offsets: Sequence[float], places: Sequence[str]) -> Line:
    worst = max(range(len(offsets)), key=lambda rank: abs(offsets[rank]))
    apart = abs(offsets[worst])
    if apart <= CLOCKS_AGREE_S:
        return Line("clocks", f"within {max(apart, 0.001):.3f} s of rank 0's")
    direction = "ahead of" if offsets[worst] > 0 else "behind"
    text = f"{places[worst]} is {apart:.1f} s {direction} rank 0's"
    return Line("clocks", text, Mark.WARNING, "set the nodes' clocks by NTP: logs and remote storage go by them")


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
