"""Report out-of-memory errors in one line, with the settings that would reduce memory use."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from adadf_dist.config.schema import Config
from adadf_dist.data.workers.process import DeadWorkerError
from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError, single_line

OOM_MESSAGES = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


@contextmanager
def report_out_of_memory(config: Config, world: World) -> Iterator[None]:
    """Convert an out-of-memory error on a GPU or CPU into a `UserError`."""
    try:
        yield
    except DeadWorkerError as error:
        raise UserError(f"{error}; run the same command to resume from the last checkpoint") from None
    except (RuntimeError, MemoryError, OSError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not is_out_of_memory(error):
            raise
        raise UserError(describe_oom(config, world, error)) from None


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in OOM_MESSAGES)


def describe_oom(config: Config, world: World, error: BaseException) -> str:
    """Return a message with the error and suggested fixes: first for resuming the run, then for starting a new one."""
    rows = -(-config.batch_size // world.size)
    crops = " with 10 crops" if config.data.ten_crop_resize else ""
    lower = ["lower batch_size", "lower data.image_size"]
    if config.runtime.precision == "fp32":
        lower.insert(1, "set runtime.precision = bf16")
    return (
        f"out of memory on rank {world.rank} ({world.device}) while {world.heartbeat.last.doing}: "
        f"batch_size {config.batch_size} over {world.size} ranks = {rows} samples{crops} per rank, "
        f"data.image_size {config.data.image_size}, "
        f"model.backbone {config.model.backbone}, runtime.precision {config.runtime.precision}; resume this run on "
        f"more ranks, or start a new run with another --out and {', or '.join(lower)} "
        f"({single_line(error)})"
    )
