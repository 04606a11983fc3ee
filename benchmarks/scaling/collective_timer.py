"""Time collectives during a step by wrapping torch's functions, and afterward by sending the same messages alone.

A wrapped call is timed from entry to return, so its time includes both sending the message and waiting for
late ranks. Gradients are sent during the backward pass; their cost is the time from sending the last bucket to the end
of the backward pass.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_pre_hook

from adadf_dist.distributed.world import World
from adadf_dist.training.synthetic_step import synchronize

OPERATIONS = ("all_reduce", "all_gather_into_tensor", "all_gather_single")
"""Collectives of a step: this package uses the first; torch's SyncBatchNorm uses others, depending on its version."""

Timestamp = float | torch.cuda.Event


class DeviceClock:
    """Clock of a rank. On a GPU, it marks positions in the CUDA stream, because the host runs ahead of the device."""

    def __init__(self, device: torch.device) -> None:
        self._on_stream = device.type == "cuda"

    def mark(self) -> Timestamp:
        if not self._on_stream:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def seconds(began: Timestamp, ended: Timestamp) -> float:
    """Return the seconds between two marks; on a GPU, the device must be synchronized first."""
    if isinstance(began, float):
        assert isinstance(ended, float)
        return ended - began
    assert not isinstance(ended, float)
    milliseconds: float = began.elapsed_time(ended)
    return milliseconds / 1000


class Message(NamedTuple):
    """The data needed to repeat a collective."""

    operation: str
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of the tensor arguments, in order."""
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of this rank's input, the last tensor (the first tensor of an all-gather is its output)."""
        return torch.Size(self.shapes[-1]).numel() * self.dtype.itemsize


class StepTrace:
    """Timestamps and messages recorded during a step."""

    def __init__(self, began: Timestamp) -> None:
        self.began = began
        self.ended: Timestamp | None = None
        self.messages: list[Message] = []
        """Messages for which the step waits, in order."""
        self.marks: list[tuple[Timestamp, Timestamp]] = []
        """Start and end of each message."""
        self.buckets: list[Message] = []
        """DDP's gradient buckets, as messages."""
        self.last_bucket: Timestamp | None = None
        self.backward_ended: Timestamp | None = None

    def seconds(self) -> float:
        assert self.ended is not None
        return seconds(self.began, self.ended)

    def blocking_times(self) -> list[float]:
        """Return the seconds of each message in `messages`, followed by the final wait for gradients, if any."""
        times = [seconds(began, ended) for began, ended in self.marks]
        if self.last_bucket is not None:
            assert self.backward_ended is not None
            times.append(seconds(self.last_bucket, self.backward_ended))
        return times


class CollectiveTimer:
    """Records every collective of a step. Create only one per process, and last, because its DDP hook is permanent."""

    def __init__(self, engine: object, world: World) -> None:
        self.world = world
        self.clock = DeviceClock(world.device)
        self.steps: list[StepTrace] = []
        for part in vars(engine).values():
            if isinstance(part, DistributedDataParallel):
                # DDP checks a hook's annotations but does not support postponed ones; a lambda has none
                part.register_comm_hook(None, lambda state, bucket: self._send_bucket(bucket))

    def record_step(self, step: Callable[[], None]) -> None:
        """Run and record one step."""
        self.steps.append(StepTrace(self.clock.mark()))
        step()
        self.steps[-1].ended = self.clock.mark()

    @contextmanager
    def install(self) -> Iterator[None]:
        originals = {name: getattr(dist, name) for name in OPERATIONS if hasattr(dist, name)}
        for name, original in originals.items():
            setattr(dist, name, self._timed(name, original))
        update = register_optimizer_step_pre_hook(self._end_backward)
        try:
            yield
        finally:
            update.remove()
            for name, original in originals.items():
                setattr(dist, name, original)

    def _timed(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if options.get("async_op") or not self.steps:  # a bucket, recorded by `_send_bucket`
                return original(*args, **options)
            tensors = [arg for arg in args if isinstance(arg, Tensor)]
            began = self.clock.mark()
            result = original(*args, **options)
            self.steps[-1].marks.append((began, self.clock.mark()))
            shapes = tuple(tuple(tensor.shape) for tensor in tensors)
            self.steps[-1].messages.append(Message(name, shapes, tensors[-1].dtype))
            return result

        return call

    def _send_bucket(self, bucket: Any) -> torch.futures.Future[Tensor]:
        """Record a `GradBucket` and send it as DDP's default hook does."""
        if self.steps:
            gradients = bucket.buffer()
            self.steps[-1].buckets.append(Message("all_reduce", (tuple(gradients.shape),), gradients.dtype))
            self.steps[-1].last_bucket = self.clock.mark()
        assert dist.group.WORLD is not None
        return allreduce_hook(dist.group.WORLD, bucket)

    def _end_backward(self, *unused: object) -> None:
        if self.steps:
            self.steps[-1].backward_ended = self.clock.mark()


def time_messages(messages: Sequence[Message], world: World, rounds: int) -> list[list[float]]:
    """Return the seconds that each message takes when nothing else runs, as one list per round.

    A round starts with a barrier, so that all ranks are in sync, and then sends the messages back to back.
    """
    clock = DeviceClock(world.device)
    found = []
    for _ in range(rounds):
        arguments = [[torch.zeros(s, dtype=m.dtype, device=world.device) for s in m.shapes] for m in messages]
        synchronize(world.device)
        world.barrier()
        marks = [clock.mark()]
        for message, tensors in zip(messages, arguments, strict=True):
            getattr(dist, message.operation)(*tensors)
            marks.append(clock.mark())
        synchronize(world.device)
        found.append([seconds(began, ended) for began, ended in itertools.pairwise(marks)])
    return found
