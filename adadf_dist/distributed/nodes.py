"""Compare what the nodes of a run find, and name the nodes in messages."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from adadf_dist.distributed.world import World, local_rank_from_env
from adadf_dist.errors import UserError

T = TypeVar("T")

MAX_NODES_LISTED = 3
"""Maximum number of nodes named in a message; the rest are counted."""


def rank_label(world: World) -> str:
    """Return a human-readable label of this rank."""
    return f"{socket.gethostname()} (rank {world.rank})"


def gather_per_node(world: World, look: Callable[[], T]) -> dict[str, T]:
    """Call `look` on each node's first rank; return the results by `HOST (rank R)`, in rank order. Collective.

    Plain Python data only, so that nodes with different versions can read it.
    """
    report = None
    if local_rank_from_env() == 0:
        report = (rank_label(world), look())
    return dict(found for found in world.all_gather_object(report) if found is not None)


def describe_mismatch(known: Mapping[str, Mapping[str, Any]], message: str, hint: str) -> UserError | None:
    """Return an error with the first name whose value differs between nodes, formatted into `message`."""
    for name in dict.fromkeys(name for values in known.values() for name in values):
        held: dict[str, list[str]] = {}
        for place, values in known.items():
            held.setdefault(str(values.get(name, "unknown")), []).append(place)
        if len(held) > 1:
            differing = " and ".join(f"{value} on {format_nodes(places)}" for value, places in held.items())
            return UserError(message.format(name=name, values=differing), hint)
    return None


def format_nodes(places: Sequence[str]) -> str:
    more = len(places) - MAX_NODES_LISTED
    return ", ".join(places[:MAX_NODES_LISTED]) + (f" and {more} more" if more > 0 else "")
