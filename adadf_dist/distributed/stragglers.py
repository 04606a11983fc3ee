"""Which rank holds the others up.

A training step does not tell: its collectives give every rank the slowest one's time. Waiting for the loader does, and
evaluation, which runs the same network over an equal share of faces and holds no collective.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from statistics import median
from typing import Any

from adadf_dist.distributed.heartbeat import EVALUATION, LOADING
from adadf_dist.distributed.world import World

SLOW_FACTOR = 1.3
"""A rank whose own work takes longer than this times the ranks' median is warned about."""
MIN_LOST_SHARE = 0.02
"""But not when it loses less than this share of the epoch's time."""


def find_straggler(world: World) -> dict[str, object]:
    """The slowest rank of the epoch, by seconds waiting for its loader plus seconds evaluating. A collective."""
    pulse = world.heartbeat
    mine = (socket.gethostname(), pulse.seconds(LOADING), pulse.seconds(EVALUATION), pulse.elapsed())
    ranks = world.all_gather_object(mine)
    totals = [loading + evaluation for _, loading, evaluation, _ in ranks]
    slowest = max(range(len(totals)), key=totals.__getitem__)
    host, loading, evaluation, epoch = ranks[slowest]
    return {
        "slowest": slowest,
        "host": host,
        "loading_s": loading,
        "evaluation_s": evaluation,
        "median_s": median(totals),
        "epoch_s": epoch,
    }


def describe_straggler(ranks: Mapping[str, Any]) -> str:
    """A warning about the slowest rank, empty when it is hardly slower than the others."""
    own, usual = ranks["loading_s"] + ranks["evaluation_s"], ranks["median_s"]
    lost = own - usual
    if own <= SLOW_FACTOR * usual or lost < MIN_LOST_SHARE * ranks["epoch_s"]:
        return ""
    part = "loading" if ranks["loading_s"] > ranks["evaluation_s"] else "evaluating"
    return (
        f"rank {ranks['slowest']} on {ranks['host']} is slow: {own:.1f} s of loading and evaluating in this epoch, the "
        f"ranks' median is {usual:.1f} s, most of it {part}; all ranks wait for it, about {lost:.1f} s an epoch"
    )
