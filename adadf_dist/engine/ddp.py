"""Engine interface, and the DDP engine: forward, backward, gradient averaging, optimizer step."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adadf_dist.config.learning_rate import Position
from adadf_dist.config.schema import Config
from adadf_dist.distributed.world import World
from adadf_dist.engine.base import BaseEngine
from adadf_dist.engine.compile import check_compile, compile_stages, mark_step_begin
from adadf_dist.engine.deepspeed_config import make_deepspeed_config
from adadf_dist.errors import UserError, single_line
from adadf_dist.method.model import DualBranch, Output
from adadf_dist.method.pretrained import LoadedWeights

DEEPSPEED_ENGINE = "adadf_dist.engine.deepspeed"
"""Imported only when needed, because DeepSpeed is optional."""


class Engine(Protocol):
    """Interface of the engines (DDP, DeepSpeed)."""

    model: DualBranch
    weights: LoadedWeights
    learning_rate: float

    def set_schedule_step(self, position: Position) -> None:
        """Set the learning rate for a step."""
        ...

    def forward(self, images: Tensor) -> Output:
        """Run both branches in training mode, with gradients."""
        ...

    def step(self, loss: Tensor) -> None:
        """Run backward and the optimizer step. The mean of `loss` over ranks is the global loss."""
        ...

    def sync_for_eval(self) -> None:
        """Synchronize per-rank state for evaluation; call it first. Collective: every rank must call this."""
        ...

    def forward_eval(self, images: Tensor) -> Output:
        """Run both branches in evaluation mode. No collective, so ranks may have unequal numbers of batches."""
        ...

    def predict(self, images: Tensor) -> Tensor:
        """Return the target logits [n, C] in evaluation mode. No collective."""
        ...

    def infer_with_features(self, images: Tensor) -> tuple[Output, Tensor]:
        """Run both branches in evaluation mode; also return the target branch's features [n, F]. No collective."""
        ...

    def state_dict(self) -> dict[str, object]:
        """Return full weights, buffers and the optimizer's moments by name. Collective: every rank must call this."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the `state_dict` of any engine. Collective. Raises `UserError` for another architecture."""
        ...


def check_engine(config: Config, world: World) -> None:
    """Raise the `UserError` that `build_engine` would raise, before anything is downloaded or opened."""
    check_compile(config.runtime, world)
    if config.engine == "deepspeed":
        make_deepspeed_config(config, world.size)


def build_engine(config: Config, num_classes: int, world: World) -> Engine:
    """Build the engine of a resolved config. Initial weights depend only on the seed, not on rank or world size.

    Raises `UserError` if DeepSpeed is configured and cannot be imported, or its JSON conflicts with the config.
    """
    if config.engine == "ddp":
        return DDPEngine(config, num_classes, world)
    settings = make_deepspeed_config(config, world.size)
    world.prepare_deepspeed()
    try:
        module = import_module(DEEPSPEED_ENGINE)
    except (ImportError, OSError, RuntimeError) as error:
        reason = single_line(error)
        raise UserError(
            f"engine is deepspeed, but it cannot be imported ({reason}); install it with "
            "pip install 'adadf_dist[deepspeed]', or set engine = ddp"
        ) from None
    return module.DeepSpeedEngine(config, num_classes, world, settings)  # type: ignore[no-any-return]


class DDPEngine(BaseEngine):
    """Engine using DistributedDataParallel; the plain model at world size 1."""

    def __init__(self, config: Config, num_classes: int, world: World) -> None:
        super().__init__(config, num_classes, world)
        compile_stages(self.model, config.runtime, world)
        self._wrapped: nn.Module = self.model
        if world.size > 1:
            self._wrapped = wrap_ddp(self.model)

    def forward(self, images: Tensor) -> Output:
        if not self.model.training:
            self.model.train()
        mark_step_begin(self.config.runtime.compile)
        with self.autocast():
            output: Output = self._wrapped(self.to_memory_format(images))
        return output

    def step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.config.optimizer.max_grad_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.max_grad_norm)
        self.optimizer.step()
        self.update_average()


def wrap_ddp(model: nn.Module) -> DistributedDataParallel:
    """Wrap the model in DDP.

    Every parameter has a gradient in every step, and buffers are equal on all ranks, so DDP need not search for
    unused parameters or broadcast buffers.
    """
    with warnings.catch_warnings():
        # newer releases rename the argument; the oldest supported one only has this name
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
