"""Read rank and node numbers from torchrun's environment variables, before the process group exists."""

from __future__ import annotations

import os

import torch.distributed as dist

from adadf_dist.errors import UserError


def world_size_from_env() -> int:
    """Return the number of ranks, or 1 if WORLD_SIZE is not set. Raises `UserError` if it is not an integer."""
    return max(number_in_environment("WORLD_SIZE", 1), 1)


def rank_from_env() -> int:
    """Return this process's rank for use in messages, or 0 if RANK is missing or invalid."""
    try:
        return number_in_environment("RANK", 0) if world_size_from_env() > 1 else 0
    except UserError:
        return 0


def local_rank_from_env() -> int:
    """Return this process's rank within its node. Local rank 0 does the work needed once per node."""
    return number_in_environment("LOCAL_RANK", 0) if is_one_of_several() else 0


def num_nodes_from_env() -> int:
    """Return the number of nodes. If the launcher does not set it, each rank counts as a node."""
    if not is_one_of_several():
        return 1
    each = max(number_in_environment("LOCAL_WORLD_SIZE", 1), 1)
    return number_in_environment("GROUP_WORLD_SIZE", 0) or -(-world_size_from_env() // each)


def is_one_of_several() -> bool:
    """Return whether this process is one of several ranks. If not, leftover rank variables are ignored."""
    return world_size_from_env() > 1 or dist.is_initialized()


def number_in_environment(name: str, default: int) -> int:
    """Return an environment variable as an integer, or `default` if it is unset or empty.

    Raises `UserError` if the value is not a nonnegative integer.
    """
    text = os.environ.get(name, "").strip()
    if text and not (text.isascii() and text.isdigit()):
        raise UserError(f"{name} is {text!r}, which is not an integer: unset {name}, or start the ranks with torchrun")
    return int(text or default)
