"""Predict step times on other machines from communication volume, operation counts and stated assumptions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from adadf_dist.config.backbone_names import RESNETS
from adadf_dist.config.load import override
from adadf_dist.config.schema import Config
from adadf_dist.data.sampling import MIN_SAMPLES_PER_RANK
from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError
from adadf_dist.method.backbones import build_resnet
from adadf_dist.method.model import DualBranch
from benchmarks.scaling.comm_volume import Communication, step_traffic
from benchmarks.step import make_warm_trainer

PUBLISHED = {"resnet18": 10_032.0, "resnet50": 3_042.0}
"""Images per second of plain training on one A100, from ffcv-imagenet's README. ResNet18: 88 epochs of ImageNet in
187.3 minutes on one GPU; ResNet50: 24,340 images/s on eight GPUs. Both include validation."""
BACKWARD = 2 / 3
"""Fraction of a step's arithmetic that is in the backward pass."""


def assumption(default: float, meaning: str) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Assumptions:
    """Values that are assumed, not measured; each `meaning` names its source. 1 GB is 10^9 bytes."""

    reference_images_per_s: float = assumption(
        0.0,
        "images/s of one GPU training the plain backbone (ffcv-imagenet's README, A100: ResNet18 10032, ResNet50 3042)",
    )
    reference_size: float = assumption(176.0, "side of these images in pixels (ffcv: 160 increasing to 192)")
    launch_us: float = assumption(6.0, "us of host time per operation of a step (assumed: eager PyTorch)")
    gpus_per_node: int = assumption(8, "GPUs per node")
    node_latency_us: float = assumption(20.0, "us per small collective within a node (assumed: NVLink)")
    network_latency_us: float = assumption(
        43.0, "us added between nodes (github.com/NVIDIA/nccl/issues/652: 63 us in total, 32 nodes of eight A100)"
    )
    node_gb_s: float = assumption(
        200.0, "GB/s per GPU within a node (github.com/NVIDIA/nccl-tests/issues/149: eight A100)"
    )
    network_gb_s: float = assumption(
        46.0, "GB/s of a GPU's 400 Gbit/s link (github.com/NVIDIA/nccl-tests/issues/290: 46 to 48)"
    )
    sync_operations: int = assumption(17, "additional operations per layer of torch's SyncBatchNorm (from its source)")
    decode_per_s: float = assumption(
        7_000.0, "images/s that a GPU decodes (github.com/NVIDIA/DALI/issues/5362: A100, larger ImageNet images)"
    )


class ComputeWork(NamedTuple):
    """Amount of computation in a step."""

    arithmetic: float
    """FLOPs per sample, as a multiple of the plain backbone's."""
    operations: int
    """Approximate number of operations that the host launches, excluding views."""


class Step(NamedTuple):
    """Prediction for a step, with times in milliseconds."""

    gpus: int
    batch_size: int
    arithmetic: float
    launches: float
    """Time to launch operations on the host, in parallel with `arithmetic`; the step takes the longer of the two."""
    batch_norm: float
    """Time for the messages and additional launches of torch's SyncBatchNorm."""
    gradients: float
    """Time to send gradients after the backward pass, or their total time if BatchNorm's messages queue behind them."""
    attention: float
    decoding: float
    """Time to decode images, concurrent with the step, which takes at least this long."""

    @property
    def total(self) -> float:
        shorter, longer = sorted((self.arithmetic, self.launches))
        if self.batch_norm:  # torch's SyncBatchNorm synchronizes host and device in each forward layer
            longer += (1 - BACKWARD) * shorter
        return max(longer + self.batch_norm + self.gradients + self.attention, self.decoding)

    @property
    def bottleneck(self) -> str:
        """Name of the part that takes the most time."""
        parts = {
            "arithmetic": self.arithmetic,
            "launches (too few samples per GPU)": self.launches,
            "BatchNorm over all ranks": self.batch_norm,
            "gradients": self.gradients,
            "attention messages": self.attention,
        }
        return "decoding" if self.total == self.decoding else max(parts, key=lambda name: parts[name])


class OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that a GPU would launch: all except views and allocations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aliases = [value.alias_info for value in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        self.count += not is_view and "empty" not in str(func)
        return func(*args, **(kwargs or {}))


def measure_work(config: Config, frozen: bool) -> ComputeWork:
    """Count the FLOPs and operations of a step by running one with two samples on the CPU."""
    size = config.data.image_size
    if config.model.backbone not in RESNETS:
        raise UserError(f"model.backbone {config.model.backbone}: must be one of {', '.join(RESNETS)}")
    plain = build_resnet(config.model.backbone)
    with FlopCounterMode(display=False) as plain_flops:
        plain(torch.randn(2, 3, size, size)).sum().backward()
    work = make_warm_trainer(override(config, {"batch_size": 2}), World(torch.device("cpu")))
    if frozen:
        work.engine.model.freeze_extractor()
    with OperationCounter() as operations, FlopCounterMode(display=False) as flops:
        work.step()
    return ComputeWork(flops.get_total_flops() / plain_flops.get_total_flops(), operations.count)


def estimate_step(
    config: Config, model: DualBranch, work: ComputeWork, gpus: int, assumptions: Assumptions
) -> Step | None:
    """Predict a step of `config.batch_size` samples on `gpus` GPUs; None if a rank would have too few samples.

    Args:
        model: from `comm_volume.network`.
    """
    if config.batch_size < MIN_SAMPLES_PER_RANK * gpus:
        return None
    face_s = (
        work.arithmetic
        / assumptions.reference_images_per_s
        * (config.data.image_size / assumptions.reference_size) ** 2
    )
    arithmetic = config.batch_size / gpus * face_s
    launches = work.operations * assumptions.launch_us / 1e6
    batch_norm = gradients = attention = 0.0
    for traffic in step_traffic(model, config, gpus, "cuda") if gpus > 1 else []:
        spent = transfer_seconds(traffic, gpus, assumptions)
        if traffic.part == "gradients":  # the last bucket is never hidden
            hidden = min(spent * (1 - 1 / traffic.calls), BACKWARD * max(arithmetic, launches))
            # BatchNorm's messages queue behind them in the same communicator and block the backward pass
            gradients = spent if config.runtime.sync_batch_norm else spent - hidden
        elif traffic.part == "attention":
            attention = spent
        else:
            batch_norm += spent
            if traffic.operation == "all-gather":  # forward; includes the layer's other extra work
                batch_norm += traffic.calls * assumptions.sync_operations * assumptions.launch_us / 1e6
    decoding = config.batch_size / gpus / assumptions.decode_per_s
    times = (arithmetic, launches, batch_norm, gradients, attention, decoding)
    return Step(gpus, config.batch_size, *(1000 * seconds for seconds in times))


def transfer_seconds(traffic: Communication, gpus: int, assumptions: Assumptions) -> float:
    """Return the seconds that messages take when sent one after another.

    This is the sum of each message's latency and of the times to send bytes within a node and between nodes, where each
    GPU has its own link.
    """
    local = min(gpus, assumptions.gpus_per_node)
    nodes = gpus / local
    latency_us = assumptions.node_latency_us + (assumptions.network_latency_us if nodes > 1 else 0)
    if traffic.operation == "all-reduce":  # reduce-scatter in the node, all-reduce of the parts, all-gather
        inside = 2 * (local - 1) / local * traffic.nbytes
        between = 2 * (nodes - 1) / nodes * traffic.nbytes / local
    else:
        inside = (local - 1) * nodes * traffic.nbytes
        between = (nodes - 1) * traffic.nbytes
    sending = inside / (assumptions.node_gb_s * 1e9) + between / (assumptions.network_gb_s * 1e9)
    return traffic.calls * latency_us / 1e6 + sending
