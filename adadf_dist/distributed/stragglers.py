"""Detect stragglers: ranks that slow down all the others.

Training steps take equally long on every rank, because their collectives wait for the slowest one. The ranks are
therefore compared by the time spent waiting for the data loader and by evaluation, which needs no collectives.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from statistics import median
from typing import Any

from adadf_dist.distributed.heartbeat import EVALUATION, LOADING
from adadf_dist.distributed.world import World

SLOW_FACTOR = 1.3
"""Minimum ratio of a rank's own working time to the median over ranks that triggers a warning."""
MIN_LOST_FRACTION = 0.02
"""Minimum fraction of an epoch's duration lost to a straggler that triggers a warning."""


def find_straggler(world: World) -> dict[str, object]:
    """Return the timings of the rank slowest at loading and evaluation. Collective: every rank must call this."""
    heartbeat = world.heartbeat
    own = (socket.gethostname(), heartbeat.seconds(LOADING), heartbeat.seconds(EVALUATION), heartbeat.elapsed())
    ranks = world.all_gather_object(own)
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
    """Return a warning about the slowest rank, or an empty string if no rank is a straggler.

    `ranks` is the result of `find_straggler`.
    """
    own, median_s = ranks["loading_s"] + ranks["evaluation_s"], ranks["median_s"]
    lost = own - median_s
    if own <= SLOW_FACTOR * median_s or lost < MIN_LOST_FRACTION * ranks["epoch_s"]:
        return ""
    activity = "loading" if ranks["loading_s"] > ranks["evaluation_s"] else "evaluation"
    return (
        f"straggler: rank {ranks['slowest']} on {ranks['host']} took {own:.1f} s for loading and evaluation in this "
        f"epoch (median over ranks: {median_s:.1f} s), mostly {activity}; this costs about {lost:.1f} s per epoch"
    )
