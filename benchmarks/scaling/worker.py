"""One rank of `bench scaling`, in a process of its own: `python -m benchmarks.scaling.worker CASE`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.config.schema import Config
from adadf_dist.console.exit import cli_errors
from adadf_dist.distributed.world import World, init_world, rank_from_env
from adadf_dist.training.synthetic_step import synchronize
from benchmarks.machine import median
from benchmarks.scaling.collective_timer import CollectiveTimer, StepTrace, time_messages
from benchmarks.step import rehearse

ALONE_ROUNDS = 5
"""Times that a step's messages are sent alone."""


@dataclass(frozen=True)
class BenchmarkCase:
    """What one start of some ranks measures."""

    ranks: int
    threads: int
    """A rank's."""
    size: int
    batch_size: int
    backbone: str
    precision: str
    sync_batch_norm: bool
    steps: int
    timeout_s: float

    @property
    def name(self) -> str:
        ranks = f"{self.ranks} rank{'s' if self.ranks > 1 else ''}"
        return ranks if self.sync_batch_norm or self.ranks == 1 else f"{ranks}, own BatchNorm"

    def config(self) -> Config:
        values: dict[str, object] = {"model.backbone": self.backbone, "runtime.precision": self.precision}
        values |= {"data.image_size": self.size, "batch_size": self.batch_size}
        return build_config([ConfigLayer("bench", {**values, "runtime.sync_batch_norm": self.sync_batch_norm})])


@dataclass(frozen=True)
class Measurement:
    """A rank's figures, in seconds and medians over its steps, and in bytes."""

    step: float
    communication: float
    waiting: float
    collectives: int
    """A step's, gradient buckets included."""
    handed_in: int
    """Bytes a step that this rank hands to collectives."""
    on_wire: float | None
    """Bytes a step that left over loopback, all ranks' and headers included; None where messages go another way."""


def measure(case: BenchmarkCase, world: World) -> Measurement:
    """A collective."""
    work = rehearse(case.config(), world)
    tap = CollectiveTimer(work.engine, world)
    with tap.install():
        work.step()  # DDP now sends its buckets by way of the tap
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
    """Seconds of a step that its messages cost by themselves, and what the rank stood still beyond that.

    Args:
        alone: seconds of each message, then of each bucket, sent alone. A message's own cost is no more than that, nor
            than what it cost the step; gradients count by what was left of them when the backward pass had computed.
    """
    costs = list(alone[: len(step.messages)])
    if step.buckets:
        costs.append(sum(alone[len(step.messages) :]))
    blocked = step.blocking_times()
    communication = sum(min(cost, time) for cost, time in zip(costs, blocked, strict=True))
    return communication, sum(blocked) - communication


def loopback_bytes() -> int | None:
    """Bytes that left over Linux's loopback device so far, whoever sent them."""
    counters = Path("/proc/net/dev")
    for line in counters.read_text(encoding="utf-8").splitlines() if counters.exists() else []:
        name, _, figures = line.partition(":")
        if name.strip() == "lo":
            return int(figures.split()[8])
    return None


def main(argv: Sequence[str]) -> None:
    """Write the rank's figures as one line of JSON."""
    case = BenchmarkCase(**json.loads(argv[0]))
    torch.set_num_threads(case.threads)
    with cli_errors("benchmarks", rank_from_env()), init_world(case.timeout_s) as world:
        print(json.dumps(asdict(measure(case, world))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
