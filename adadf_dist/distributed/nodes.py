"""Compare what the nodes of a run find, and name the nodes in messages."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from adadf_dist.distributed.environment import local_rank_from_env
from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError

T = TypeVar("T")

MAX_NODES_LISTED = 3
"""Maximum number of nodes named in a message; the rest are counted."""


def rank_label(world: World) -> str:
    """Return a human-readable label of this rank."""
    return f"{socket.gethostname()} (rank {world.rank})"


def gather_per_node(world: World, probe: Callable[[], T]) -> dict[str, T]:
    """Call `probe` on each node's first rank; return the results by `HOST (rank R)`, in rank order. Collective.

    Plain Python data only, so that nodes with different versions can read it.
    """
    result = (rank_label(world), probe()) if local_rank_from_env() == 0 else None
    return dict(found for found in world.all_gather_object(result) if found is not None)


def describe_mismatch(known: Mapping[str, Mapping[str, Any]], message: str, hint: str) -> UserError | None:
    """Return an error with the first name whose value differs between nodes, formatted into `message`."""
    for name in dict.fromkeys(name for values in known.values() for name in values):
        nodes: dict[str, list[str]] = {}
        for node, values in known.items():
            nodes.setdefault(str(values.get(name, "unknown")), []).append(node)
        if len(nodes) > 1:
            differing = " and ".join(f"{value} on {format_nodes(where)}" for value, where in nodes.items())
            return UserError(message.format(name=name, values=differing), hint)
    return None


def format_nodes(nodes: Sequence[str]) -> str:
    more = len(nodes) - MAX_NODES_LISTED
    return ", ".join(nodes[:MAX_NODES_LISTED]) + (f" and {more} more" if more > 0 else "")
