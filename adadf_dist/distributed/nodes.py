"""Collect facts from every node of a run, and report nodes that disagree."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from adadf_dist.distributed.environment import local_rank_from_env
from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError

T = TypeVar("T")

MAX_NODES_LISTED = 3
"""Maximum number of nodes listed by name in a message; the rest are only counted."""


def rank_label(world: World) -> str:
    """Return a label for this rank, such as `host1 (rank 3)`."""
    return f"{socket.gethostname()} (rank {world.rank})"


def gather_per_node(world: World, probe: Callable[[], T]) -> dict[str, T]:
    """Call `probe` on the first rank of each node, and return the results by node label, in rank order.

    `probe` must return plain Python data, which nodes with different software versions can exchange. Collective: every
    rank must call this.
    """
    result = (rank_label(world), probe()) if local_rank_from_env() == 0 else None
    return dict(found for found in world.all_gather_object(result) if found is not None)


def describe_mismatch(known: Mapping[str, Mapping[str, Any]], message: str, hint: str) -> UserError | None:
    """Return an error message about the first name whose value differs between nodes, or None if all values agree.

    Args:
        known: for each node label, the values by name.
        message: error template with the placeholders `{name}` and `{values}`.
        hint: how to fix the problem.
    """
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
