"""Measure communication between ranks: barrier latency on the control group, all-reduce speed between devices."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median

import torch

from adadf_dist.distributed.world import World
from adadf_dist.findings import Finding, ok, warning
from adadf_dist.training.synthetic_step import synchronize

DECISIONS = 30
SLOW_DECISION_S = 0.02
SMALL, LARGE = 2**12, 2**26
"""Sizes in bytes of the small and the large message in the all-reduce measurement."""
BUDGET_S = 3.0
MOST_ROUNDS = 20


def check_communication(world: World) -> Iterator[Finding]:
    """Measure barrier latency and all-reduce bandwidth. Collective: every rank must call this."""
    if world.size == 1:
        yield ok("network", "single rank: no communication")
        return
    latency = median(time_exchange(world.barrier) for _ in range(DECISIONS))
    text = f"gloo: {milliseconds(latency)} per control-group barrier"
    if latency > SLOW_DECISION_S:
        hint = "slow or wrong network: set GLOO_SOCKET_IFNAME to the right interface, or raise runtime.stop_check_steps"
        yield warning("control", text, hint)
    else:
        yield ok("control", text)
    small, large = (all_reduce_seconds(world, size) for size in (SMALL, LARGE))
    backend = "nccl" if world.device.type == "cuda" else "gloo"
    text = f"{backend}: {milliseconds(small)} at {SMALL // 1024} KB, {milliseconds(large)} at {LARGE >> 20} MB"
    yield ok("all-reduce", f"{text} ({LARGE / large / 1e6:,.0f} MB/s)")


def all_reduce_seconds(world: World, size: int) -> float:
    """Return the median time in seconds of an all-reduce of `size` bytes, on the slowest rank.

    Collective: every rank must call this.
    """
    message = torch.zeros(size // 4, device=world.device)

    def send() -> None:
        world.all_reduce_sum_(message)
        synchronize(world.device)

    send()  # the first call creates connections and buffers
    first = world.broadcast_object(time_exchange(send))
    assert isinstance(first, float)
    rounds = max(1, min(MOST_ROUNDS, int(BUDGET_S / max(first, 1e-6))))
    return max(world.all_gather_object(median(time_exchange(send) for _ in range(rounds))))


def time_exchange(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def milliseconds(value: float) -> str:
    return f"{value * 1000:.3g} ms"
