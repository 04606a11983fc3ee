"""The ranks of a run: process group, collectives, and coordinated stop.

The only collectives outside this module are those that DDP, DeepSpeed and torch's SyncBatchNorm run internally. A
process started without torchrun is a world of size 1, in which no collective communicates.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import TCPStore  # type: ignore[attr-defined]

from adadf_dist.distributed.environment import local_rank_from_env, world_size_from_env
from adadf_dist.distributed.heartbeat import Heartbeat
from adadf_dist.distributed.rendezvous import check_master_addr, exchange_start_id, wait_for_address
from adadf_dist.distributed.stop_signals import handle_stop_signals
from adadf_dist.errors import LostRankError, UserError

T = TypeVar("T")
DeviceName = Literal["auto", "cpu", "cuda"]

NO_GPU = "--device cuda: no GPU available; pass --device cpu or auto"


class World:
    """One rank's view of a run: its rank, the world size, its device and the collectives.

    Every rank must call the same collectives in the same order.
    """

    def __init__(self, device: torch.device, rank: int = 0, size: int = 1) -> None:
        self.device = device
        self.rank = rank
        self.size = size
        self.heartbeat = Heartbeat(visible=rank == 0)
        self._stop_requested = False
        self._control: dist.ProcessGroup | None = None
        """CPU process group (Gloo) for control messages, which never wait for queued GPU work; None for one rank."""

    def __deepcopy__(self, memo: dict[int, Any]) -> World:
        """Return this object itself, because a copy of the model (the weight average) uses the same ranks."""
        return self

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def all_reduce_sum_(self, tensor: Tensor) -> Tensor:
        """Sum over ranks in place, and return the tensor. Collective: every rank must call this."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, values: Tensor, first: int, total: int) -> Tensor:
        """Return the global batch of all ranks' rows, with gradients. Collective: every rank must call this.

        Args:
            values: [n, ...], this rank's rows.
            first: index of this rank's first row in the global batch.
            total: number of rows in the global batch, N.

        Returns:
            [N, ...], all rows, on every rank. The backward pass sums gradients over ranks and returns this rank's rows.
            Since the engine averages losses over ranks, a loss computed in full on every rank counts only once.
        """
        if self.size == 1:
            return values
        gathered: Tensor = _Gather.apply(values, first, total)
        return gathered

    def barrier(self) -> None:
        if self._control is not None:
            dist.barrier(group=self._control)

    def broadcast_object(self, value: object) -> object:
        """Return rank 0's `value` (plain Python data) on every rank. Collective: every rank must call this."""
        if self._control is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    def all_gather_object(self, value: T) -> list[T]:
        """Return every rank's value, in rank order. Collective: every rank must call this."""
        if self._control is None:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._control)
        return values

    def request_stop(self) -> None:
        """Ask all ranks to stop together. Stop signals also call this."""
        self._stop_requested = True

    def should_stop(self) -> bool:
        """Return whether any rank was asked to stop. Collective: every rank must call this at the same step."""
        requested = torch.tensor([int(self._stop_requested)])
        if self._control is not None:
            dist.all_reduce(requested, op=dist.ReduceOp.MAX, group=self._control)
        return bool(requested.item())

    def prepare_deepspeed(self) -> None:
        """Create the process group and set the environment variables that DeepSpeed requires."""
        if not dist.is_initialized():
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        os.environ["LOCAL_RANK"] = str(local_rank_from_env())
        os.environ.setdefault("DS_ACCELERATOR", self.device.type)

    def init_control_group(self, timeout_s: float) -> None:
        """Create the CPU process group for control messages. It detects a dead rank within `timeout_s` seconds."""
        if self.size > 1:
            group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
            assert isinstance(group, dist.ProcessGroup)
            self._control = group


class _Gather(torch.autograd.Function):
    """Differentiable gather of rows: sums buffers over ranks that are zero outside each rank's own rows.

    The result is exact, needs no host synchronization, and ranks may have different numbers of rows.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, first: int, total: int) -> Tensor:
        ctx.rows = slice(first, first + len(values))
        gathered = values.new_zeros(total, *values.shape[1:])
        gathered[ctx.rows] = values
        dist.all_reduce(gathered)
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient[ctx.rows], None, None


@contextmanager
def init_world(
    timeout_s: float = 300.0, finish_steps: bool = True, device_name: DeviceName = "auto"
) -> Iterator[World]:
    """Create the world from an existing process group, from torchrun's environment, or as a single process.

    An existing process group (from Ray or a test) is left open at the end. With `finish_steps`, stop signals do not end
    the process, but are reported by `World.should_stop`, so that the current step is completed.
    """
    adopted = dist.is_initialized()
    device = pick_device(device_name)
    if world_size_from_env() > 1 and not adopted:
        init_process_group("nccl" if device.type == "cuda" else "gloo", timeout_s)
    world = World(device, dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else World(device)
    world.init_control_group(timeout_s)
    with handle_stop_signals(world.request_stop) if finish_steps else nullcontext():
        try:
            yield world
        except RuntimeError as error:
            if world.size == 1 or not is_peer_failure(error):
                raise
            how = "no response within runtime.timeout_s" if "Timed out" in str(error) else "connection closed"
            raise LostRankError(
                f"lost contact with another rank ({how}); see that rank's log. Run the same command to resume from "
                "the last checkpoint"
            ) from None
        finally:
            if dist.is_initialized() and not adopted:
                dist.destroy_process_group()


def init_process_group(backend: str, timeout_s: float) -> None:
    """Join the process group described by the environment. Raises `UserError` if this fails."""
    size = world_size_from_env()
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise UserError(
                f"WORLD_SIZE is {size}, but {name} is not set: start the ranks with torchrun, or set RANK, WORLD_SIZE, "
                "LOCAL_RANK, MASTER_ADDR and MASTER_PORT for each rank"
            )
    host, port, rank = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], os.environ["RANK"]
    if not (rank.isascii() and rank.isdigit()) or int(rank) >= size:
        raise UserError(
            f"RANK is {rank!r}: give each rank a different number from 0 to {size - 1} (WORLD_SIZE is {size})"
        )
    if not (port.isascii() and port.isdigit()) or not 0 < int(port) < 2**16:
        raise UserError(f"MASTER_PORT is {port!r}: set it to a free port on {host} (1 to 65535)")
    # torchrun listens there itself; without torchrun, rank 0 does
    has_agent_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if int(rank) != 0 or has_agent_store:
        wait_for_address(host, int(port), timeout_s)
    else:
        check_master_addr(host, int(port))
    limit = timedelta(seconds=timeout_s)
    try:
        if not has_agent_store:
            dist.init_process_group(backend, timeout=limit)
            return
        store = TCPStore(host, int(port), is_master=False, timeout=limit)
        fresh = PrefixStore(exchange_start_id(store, int(rank), size, timeout_s), store)
        dist.init_process_group(backend, store=fresh, rank=int(rank), world_size=size, timeout=limit)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0][:200].rstrip(".")
        raise UserError(
            f"rendezvous of {size} ranks at {host}:{port} (MASTER_ADDR, MASTER_PORT) failed: {reason}; all ranks must "
            f"start within {timeout_s:g} s (runtime.timeout_s) and be able to reach each other (GLOO_SOCKET_IFNAME, "
            "NCCL_SOCKET_IFNAME)"
        ) from None


def is_peer_failure(error: RuntimeError) -> bool:
    """Return whether a collective failed because another rank exited or stopped responding."""
    if isinstance(error, (dist.DistBackendError, dist.DistNetworkError)):
        return True
    messages = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")
    return any(message in str(error) for message in messages)


def pick_device(name: DeviceName = "auto") -> torch.device:
    """Return the device of this rank: its GPU or the CPU.

    Raises `UserError` if `cuda` is requested without a GPU, or if the node has more ranks than GPUs.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(NO_GPU)
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank = local_rank_from_env()
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"--nproc_per_node: no GPU left for local rank {local_rank}, because this node has only "
            f"{torch.cuda.device_count()}; start one rank per GPU, or set CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
