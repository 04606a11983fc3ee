"""How a step runs over the ranks: forward, backward, gradients averaged, Adam."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adadf_dist.config import Config
from adadf_dist.errors import UserError
from adadf_dist.method.model import DualBranch, Output
from adadf_dist.method.weights import LoadedWeights, load_pretrained
from adadf_dist.runtime.normalization import synchronize_batch_norm
from adadf_dist.runtime.optim import (
    build_optimizer,
    learning_rate,
    load_moments,
    moments_by_name,
    set_learning_rate,
)
from adadf_dist.world import World

Precision = Literal["fp32", "bf16"]


class Engine(Protocol):
    """What training needs of DDP, and of any other way to run a step."""

    model: DualBranch
    weights: LoadedWeights
    learning_rate: float

    def schedule(self, epoch: int, step: int) -> None:
        """Set the learning rate of a step; epoch and step counted from 0 over the whole run."""
        ...

    def forward(self, images: Tensor) -> Output:
        """Both branches in training mode, with gradients."""
        ...

    def step(self, loss: Tensor) -> None:
        """Backward and update. The mean of `loss` over ranks is the global loss."""
        ...

    def infer(self, images: Tensor) -> Output:
        """Both branches in evaluation mode; no collective, so ranks may hold unequal shares."""
        ...

    def predict(self, images: Tensor) -> Tensor:
        """Target logits [n, C] in evaluation mode; no collective."""
        ...

    def state_dict(self) -> dict[str, object]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def resolve_precision(config: Config, device: torch.device) -> Precision:
    """What `runtime.precision` auto means here: bf16 where the hardware multiplies it fast."""
    if config.runtime.precision != "auto":
        return config.runtime.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return "bf16" if has_amx else "fp32"


def build_engine(config: Config, num_classes: int, world: World) -> Engine:
    """The engine of a resolved config. Weights depend on the seed alone, not on rank or world."""
    return DDPEngine(config, num_classes, world)


def build_model(config: Config, num_classes: int) -> tuple[DualBranch, LoadedWeights]:
    """The network as training starts it: seeded, then pretrained and frozen as the config says."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = DualBranch(config.model, num_classes, auxiliary=config.loss.supervision != "one_hot")
    return model, load_pretrained(model, config.model)


class DDPEngine:
    """DistributedDataParallel over the ranks of a world; plain at world size 1."""

    def __init__(self, config: Config, num_classes: int, world: World) -> None:
        self.config = config
        self.world = world
        model, self.weights = build_model(config, num_classes)
        # channels last is what bf16 units and GPUs multiply fastest; plain fp32 on a CPU is faster without
        fast = config.runtime.precision == "bf16" or world.device.type == "cuda"
        self._format = torch.channels_last if fast else torch.contiguous_format
        model = model.to(world.device, memory_format=self._format)  # type: ignore[call-overload]
        self.model: DualBranch = synchronize_batch_norm(model, world)  # type: ignore[assignment]
        self.optimizer = build_optimizer(self.model, config.optimizer, world.device)
        self.average = copy.deepcopy(self.model) if config.optimizer.ema else None
        """Average of the weights (EMA), which evaluation then sees instead."""
        self.learning_rate = config.optimizer.lr
        self._wrapped: nn.Module = self.model
        if world.size > 1:
            self._wrapped = wrap(self.model)

    @property
    def evaluated(self) -> DualBranch:
        """The model that evaluation, selection and export see."""
        return self.average or self.model

    def schedule(self, epoch: int, step: int) -> None:
        self.learning_rate = learning_rate(self.config.optimizer, self.config.epochs, epoch, step)
        set_learning_rate(self.optimizer, self.learning_rate)

    def forward(self, images: Tensor) -> Output:
        if not self.model.training:
            self.model.train()
        with self._autocast():
            output: Output = self._wrapped(images.contiguous(memory_format=self._format))
        return output

    def step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if self.average is not None:
            update_average(self.average, self.model, self.config.optimizer.ema)

    @torch.no_grad()
    def infer(self, images: Tensor) -> Output:
        with self._autocast():
            output: Output = self._evaluating()(images.contiguous(memory_format=self._format))
        return output

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        with self._autocast():
            return self._evaluating().predict(images.contiguous(memory_format=self._format))

    def state_dict(self) -> dict[str, object]:
        state: dict[str, object] = {
            "model": {key: value.detach().cpu() for key, value in self.model.state_dict().items()},
            "moments": moments_by_name(self.model, self.optimizer),
        }
        if self.average is not None:
            state["average"] = {k: v.detach().cpu() for k, v in self.average.state_dict().items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        load_model(self.model, state["model"])
        if self.average is not None:
            load_model(self.average, state["average"])
        load_moments(self.model, self.optimizer, state["moments"])

    def _evaluating(self) -> DualBranch:
        model = self.evaluated
        if model.training:
            model.eval()
        return model

    def _autocast(self) -> AbstractContextManager[None]:
        bf16 = self.config.runtime.precision == "bf16"
        return torch.autocast(self.world.device.type, dtype=torch.bfloat16, enabled=bf16)


def wrap(model: nn.Module) -> DistributedDataParallel:
    """DDP as this model needs it.

    Every parameter has a gradient in every step and buffers agree by construction, so DDP need neither search for
    unused parameters nor broadcast buffers.
    """
    with warnings.catch_warnings():
        # newer releases call the argument by another name, which the oldest supported one does not know
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the averaged weights towards the model's; BatchNorm statistics are taken over as they are."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for kept, new in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(new)


def load_model(model: DualBranch, state: object) -> None:
    """Raises `UserError` naming the first tensor that shows another architecture."""
    assert isinstance(state, dict)
    own = model.state_dict()
    for key in [*own, *state]:
        if key not in state or key not in own or own[key].shape != state[key].shape:
            raise UserError(
                f"the checkpoint is of another architecture: {key} differs; "
                "give the model.backbone and loss.supervision it was trained with"
            )
    model.load_state_dict(state)
