"""Run one rank of the scaling benchmark in its own process: `python -m benchmarks.scaling.worker CASE`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.config.schema import Config
from adadf_dist.console.exit import cli_errors
from adadf_dist.console.formats import plural
from adadf_dist.distributed.environment import rank_from_env
from adadf_dist.distributed.world import World, init_world
from adadf_dist.training.synthetic_step import synchronize
from benchmarks.scaling.collective_timer import CollectiveTimer, StepTrace, time_messages
from benchmarks.step import make_warm_trainer

ALONE_ROUNDS = 5
"""Number of times that a step's messages are sent alone."""


@dataclass(frozen=True)
class BenchmarkCase:
    """Settings of one measurement."""

    ranks: int
    threads: int
    """Threads per rank."""
    size: int
    batch_size: int
    backbone: str
    precision: str
    sync_batch_norm: bool
    steps: int
    timeout_s: float

    @property
    def name(self) -> str:
        ranks = plural(self.ranks, "rank")
        return ranks if self.sync_batch_norm or self.ranks == 1 else f"{ranks}, per-rank BatchNorm"

    def config(self) -> Config:
        values: dict[str, object] = {"model.backbone": self.backbone, "runtime.precision": self.precision}
        values |= {"data.image_size": self.size, "batch_size": self.batch_size}
        return build_config([ConfigLayer("bench", {**values, "runtime.sync_batch_norm": self.sync_batch_norm})])


@dataclass(frozen=True)
class Measurement:
    """Measurements of a rank: seconds, as medians over its steps, and bytes."""

    step: float
    communication: float
    waiting: float
    collectives: int
    """Number of collectives per step, including gradient buckets."""
    handed_in: int
    """Input bytes of this rank's collectives per step."""
    on_wire: float | None
    """Bytes per step sent over loopback by all ranks, including headers; None if messages do not use loopback."""


def measure(case: BenchmarkCase, world: World) -> Measurement:
    """Measure the steps of a case. Collective: every rank must call this."""
    work = make_warm_trainer(case.config(), world)
    tap = CollectiveTimer(work.engine, world)
    with tap.install():
        work.step()  # DDP starts using the hook
        synchronize(world.device)
        world.barrier()
        before = loopback_bytes()
        for _ in range(case.steps):
            tap.record_step(work.step)
        synchronize(world.device)
        world.barrier()
        after = loopback_bytes()
    first = tap.steps[0]
    sent = [*first.messages, *first.buckets]
    alone = [median(times) for times in zip(*time_messages(sent, world, ALONE_ROUNDS), strict=True)]
    splits = [split(step, alone) for step in tap.steps]
    wire = None if before is None or after is None or world.device.type == "cuda" else (after - before) / case.steps
    return Measurement(
        step=median([step.seconds() for step in tap.steps]),
        communication=median([communication for communication, _ in splits]),
        waiting=median([waiting for _, waiting in splits]),
        collectives=len(sent),
        handed_in=sum(message.nbytes for message in sent),
        on_wire=wire,
    )


def split(step: StepTrace, alone: Sequence[float]) -> tuple[float, float]:
    """Split the blocking time of a step into seconds of communication and of waiting.

    Args:
        alone: seconds that each message, then each bucket, takes when sent alone. A message's communication time is
            the smaller of this and its blocking time. Gradients count only from sending the last bucket on.
    """
    costs = list(alone[: len(step.messages)])
    if step.buckets:
        costs.append(sum(alone[len(step.messages) :]))
    blocked = step.blocking_times()
    communication = sum(min(cost, time) for cost, time in zip(costs, blocked, strict=True))
    return communication, sum(blocked) - communication


def loopback_bytes() -> int | None:
    """Return the bytes that all processes have sent over Linux's loopback device so far; None if unknown."""
    counters = Path("/proc/net/dev")
    for line in counters.read_text(encoding="utf-8").splitlines() if counters.exists() else []:
        name, _, figures = line.partition(":")
        if name.strip() == "lo":
            return int(figures.split()[8])
    return None


def main(argv: Sequence[str]) -> None:
    """Measure the case in `argv` and print the rank's measurements as one line of JSON."""
    case = BenchmarkCase(**json.loads(argv[0]))
    torch.set_num_threads(case.threads)
    with cli_errors("benchmarks", rank_from_env()), init_world(case.timeout_s) as world:
        print(json.dumps(asdict(measure(case, world))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
