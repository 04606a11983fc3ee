"""Variables that a launcher such as torchrun sets: ranks and nodes, readable before the process group exists."""

from __future__ import annotations

import os

import torch.distributed as dist

from adadf_dist.errors import UserError


def world_size_from_env() -> int:
    """Return the world size. Raises `UserError` for an invalid WORLD_SIZE."""
    return max(number_in_environment("WORLD_SIZE", 1), 1)


def rank_from_env() -> int:
    """Return this rank before the world is initialized, for messages; 0 if the environment does not set it."""
    try:
        return number_in_environment("RANK", 0) if world_size_from_env() > 1 else 0
    except UserError:
        return 0


def local_rank_from_env() -> int:
    """Return this rank's number on its node; local rank 0 does the work that is done once per node."""
    return number_in_environment("LOCAL_RANK", 0) if is_one_of_several() else 0


def num_nodes_from_env() -> int:
    """Return the number of nodes (torchrun's agents). If the launcher does not set it, each rank counts as a node."""
    if not is_one_of_several():
        return 1
    each = max(number_in_environment("LOCAL_WORLD_SIZE", 1), 1)
    return number_in_environment("GROUP_WORLD_SIZE", 0) or -(-world_size_from_env() // each)


def is_one_of_several() -> bool:
    """Return whether the launcher's variables apply: a single process ignores those left by an earlier launcher."""
    return world_size_from_env() > 1 or dist.is_initialized()


def number_in_environment(name: str, default: int) -> int:
    """Return a launcher's variable as an integer, or `default` if empty or not set. Raises `UserError`."""
    text = os.environ.get(name, "").strip()
    if text and not (text.isascii() and text.isdigit()):
        raise UserError(f"{name} is {text!r}, which is not an integer: unset {name}, or start the ranks with torchrun")
    return int(text or default)
