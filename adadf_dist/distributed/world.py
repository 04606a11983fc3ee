"""The processes of a run: who we are, what we exchange, and how we stop together.

Every use of signals and of the environment is in this file, and every collective of ours (DDP, DeepSpeed and BatchNorm
have their own). One process without torchrun is a world of size 1 in which every collective is the identity.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import TCPStore  # type: ignore[attr-defined]

from adadf_dist.distributed.heartbeat import Heartbeat
from adadf_dist.distributed.rendezvous import check_master_addr, exchange_start_id, wait_for_address
from adadf_dist.errors import LostRankError, UserError

T = TypeVar("T")

DUPLICATE_SIGNAL_WINDOW_S = 2.0
"""Ctrl-C reaches a rank twice, from the terminal and through torchrun: signals this close count as one."""

MIN_SAMPLES_PER_RANK = 2
"""BatchNorm and the two attention groups of eq 10 need at least two samples."""


class World:
    """Rank `rank` of `size` on `device`. Collectives must be called by every rank in the same order."""

    def __init__(self, device: torch.device, rank: int = 0, size: int = 1) -> None:
        self.device = device
        self.rank = rank
        self.size = size
        self.heartbeat = Heartbeat(visible=rank == 0)
        self._stop_requested = False
        self._control: dist.ProcessGroup | None = None
        """Gloo, on the CPU: decisions never wait behind, or on, the accelerator's queue."""

    def __deepcopy__(self, memo: dict[int, Any]) -> World:
        """The same world: a copied model (an average of the weights) trains among the same ranks."""
        return self

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def all_reduce_sum_(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place. Returns the same tensor."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, values: Tensor, first: int, total: int) -> Tensor:
        """Each rank's rows of a global batch, in order of place, differentiably.

        Args:
            values: [n, ...], this rank's slice.
            first: place of its first row in the global batch.
            total: rows of the global batch, N.

        Returns:
            [N, ...] on every rank. Backward sums over ranks and hands each its own slice: with losses that the
            engine averages over ranks, a loss computed whole on every rank counts once.
        """
        if self.size == 1:
            return values
        gathered: Tensor = _Gather.apply(values, first, total)
        return gathered

    def barrier(self) -> None:
        if self._control is not None:
            dist.barrier(group=self._control)

    def broadcast_object(self, value: object) -> object:
        """Rank 0's value on every rank (plain Python data)."""
        if self._control is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    def all_gather_object(self, value: T) -> list[T]:
        """Every rank's value, in rank order, on every rank."""
        if self._control is None:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._control)
        return values

    def request_stop(self) -> None:
        """Ask that all ranks stop at the next agreement, as a first SIGTERM, SIGINT or SIGHUP does."""
        self._stop_requested = True

    def should_stop(self) -> bool:
        """Whether any rank was asked to stop, the same answer on all. A collective: call it at fixed steps."""
        asked = torch.tensor([int(self._stop_requested)])
        if self._control is not None:
            dist.all_reduce(asked, op=dist.ReduceOp.MAX, group=self._control)
        return bool(asked.item())

    def prepare_deepspeed(self) -> None:
        """What DeepSpeed looks for when it is imported and started: a process group, LOCAL_RANK, the kind of device."""
        if not dist.is_initialized():
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        os.environ["LOCAL_RANK"] = str(local_rank_from_env())
        os.environ.setdefault("DS_ACCELERATOR", self.device.type)

    def init_control_group(self, timeout_s: float) -> None:
        """The group for decisions. A dead peer is noticed after `timeout_s` at most."""
        if self.size > 1:
            group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
            assert isinstance(group, dist.ProcessGroup)
            self._control = group


class _Gather(torch.autograd.Function):
    """All-reduce of a buffer that is zero outside our slice: exact, no host sync, slices of any size."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, first: int, total: int) -> Tensor:
        ctx.place = slice(first, first + len(values))
        gathered = values.new_zeros(total, *values.shape[1:])
        gathered[ctx.place] = values
        dist.all_reduce(gathered)
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient[ctx.place], None, None


@contextmanager
def init_world(timeout_s: float = 300.0, finish_steps: bool = True) -> Iterator[World]:
    """The world that torchrun's environment describes, a group somebody else opened, or a single process.

    A group that was open before (Ray's, a test's) is adopted and left open. `finish_steps` makes signals a question
    that `should_stop` reports; without, they end the process as they always do.
    """
    adopted = dist.is_initialized()
    launched = world_size_from_env() > 1
    device = pick_device()
    if launched and not adopted:
        init_process_group("nccl" if device.type == "cuda" else "gloo", timeout_s)
    world = World(device)
    if dist.is_initialized():
        world = World(device, dist.get_rank(), dist.get_world_size())
    world.init_control_group(timeout_s)
    with handle_stop_signals(world) if finish_steps else nullcontext():
        try:
            yield world
        except RuntimeError as error:
            if world.size == 1 or not is_peer_failure(error):
                raise
            how = "no answer within runtime.timeout_s" if "Timed out" in str(error) else "connection closed"
            raise LostRankError(
                f"lost contact with another rank ({how}), whose own message says why; the same command goes on "
                "from the last checkpoint"
            ) from None
        finally:
            if dist.is_initialized() and not adopted:
                dist.destroy_process_group()


def init_process_group(backend: str, timeout_s: float) -> None:
    """Meet the other ranks where the environment says. Raises `UserError` naming the address when that fails."""
    size = world_size_from_env()
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise UserError(
                f"WORLD_SIZE is {size}, but {name} is not set: start the ranks with torchrun, or set RANK, WORLD_SIZE, "
                "LOCAL_RANK, MASTER_ADDR and MASTER_PORT for each"
            )
    host, port, own = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], os.environ["RANK"]
    if not (own.isascii() and own.isdigit()) or int(own) >= size:
        raise UserError(f"RANK is {own!r}: give each of the {size} ranks (WORLD_SIZE) a number from 0")
    if not (port.isascii() and port.isdigit()) or not 0 < int(port) < 2**16:
        raise UserError(f"MASTER_PORT is {port!r}: give the number of a free port on {host}")
    # torchrun listens there itself; without it rank 0 will
    if rank_from_env() != 0 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        wait_for_address(host, int(port), timeout_s)
    else:
        check_master_addr(host, int(port))
    limit = timedelta(seconds=timeout_s)
    try:
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            dist.init_process_group(backend, timeout=limit)
            return
        rank = rank_from_env()
        store = TCPStore(host, int(port), is_master=False, timeout=limit)
        fresh = PrefixStore(exchange_start_id(store, rank, size, timeout_s), store)
        dist.init_process_group(backend, store=fresh, rank=rank, world_size=size, timeout=limit)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0][:200].rstrip(".")
        raise UserError(
            f"the {size} ranks did not meet at {host}:{port} (MASTER_ADDR, MASTER_PORT): {reason}; all must start "
            f"within {timeout_s:g} s (runtime.timeout_s) of each other, on a network where each reaches each other one "
            "(GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME)"
        ) from None


def is_peer_failure(error: RuntimeError) -> bool:
    """Whether a collective failed because a peer is gone or silent, rather than through a fault of our own."""
    if isinstance(error, (dist.DistBackendError, dist.DistNetworkError)):
        return True
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")
    return any(sign in str(error) for sign in signs)


def pick_device() -> torch.device:
    """This rank's GPU, or the CPU. Raises `UserError` when there are more ranks on the node than GPUs."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank = local_rank_from_env()
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"--nproc_per_node: local rank {local_rank} has no GPU, this node has "
            f"{torch.cuda.device_count()}; start one rank a GPU, or hide the GPUs with CUDA_VISIBLE_DEVICES= "
            "to train on the CPU"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


@contextmanager
def handle_stop_signals(world: World) -> Iterator[None]:
    """SIGTERM, SIGINT or SIGHUP (the terminal is gone) asks the world to stop.

    A second signal after `DUPLICATE_SIGNAL_WINDOW_S` stops at once. A SIGHUP that `nohup` ignores stays ignored.
    """
    asked_at = 0.0

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked_at
        now = time.monotonic()
        if asked_at and now - asked_at > DUPLICATE_SIGNAL_WINDOW_S:
            os._exit(128 + number)
        asked_at = asked_at or now
        world.request_stop()

    handled = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        handled.append(signal.SIGHUP)
    try:
        previous = {n: signal.signal(n, on_signal) for n in handled}
    except ValueError:  # not the main thread: whoever runs us there owns the signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def world_size_from_env() -> int:
    """Raises `UserError` for a WORLD_SIZE that is no number of ranks."""
    return max(number_in_environment("WORLD_SIZE", 1), 1)


def rank_from_env() -> int:
    """Our rank before the world is open, for messages: 0 where the environment does not say."""
    try:
        return number_in_environment("RANK", 0) if world_size_from_env() > 1 else 0
    except UserError:
        return 0


def local_rank_from_env() -> int:
    """Our number on this node: what is done once per node is done by the first one."""
    return number_in_environment("LOCAL_RANK", 0) if is_one_of_several() else 0


def num_nodes_from_env() -> int:
    """Nodes of the run: torchrun's agents; each rank counts as one where the launcher does not say."""
    if not is_one_of_several():
        return 1
    each = max(number_in_environment("LOCAL_WORLD_SIZE", 1), 1)
    return number_in_environment("GROUP_WORLD_SIZE", 0) or -(-world_size_from_env() // each)


def is_one_of_several() -> bool:
    """Whether a launcher's variables are about this process: alone, it ignores those that an earlier one left."""
    return world_size_from_env() > 1 or dist.is_initialized()


def number_in_environment(name: str, default: int) -> int:
    """A launcher's variable; an empty one counts as not set. Raises `UserError` for what is not a whole number."""
    text = os.environ.get(name, "").strip()
    if text and not (text.isascii() and text.isdigit()):
        raise UserError(
            f"{name} is {text!r}, which is not a whole number: unset {name}, or start the ranks with torchrun, which "
            "sets it"
        )
    return int(text or default)


def check_batch_size(batch_size: int, world: World) -> None:
    """Raises `UserError` when a global batch leaves some rank fewer samples than a step needs."""
    if batch_size < MIN_SAMPLES_PER_RANK * world.size:
        raise UserError(
            f"batch_size is {batch_size} over {world.size} ranks; a step needs {MIN_SAMPLES_PER_RANK} samples "
            f"a rank: raise batch_size to {MIN_SAMPLES_PER_RANK * world.size} or start at most "
            f"{batch_size // MIN_SAMPLES_PER_RANK} ranks"
        )
