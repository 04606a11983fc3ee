"""How a step runs over the ranks: forward, backward, gradients averaged, Adam."""

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
"""Imported where it is wanted: it takes DeepSpeed, which not everyone has."""


class Engine(Protocol):
    """What training needs of DDP, of DeepSpeed, and of any other way to run a step."""

    model: DualBranch
    weights: LoadedWeights
    learning_rate: float

    def set_schedule_step(self, position: Position) -> None:
        """Set the learning rate of a step."""
        ...

    def forward(self, images: Tensor) -> Output:
        """Both branches in training mode, with gradients."""
        ...

    def step(self, loss: Tensor) -> None:
        """Backward and update. The mean of `loss` over ranks is the global loss."""
        ...

    def sync_for_eval(self) -> None:
        """Bring together what ranks hold apart, for `infer` and `predict` to see. A collective, before evaluation."""
        ...

    def forward_eval(self, images: Tensor) -> Output:
        """Both branches in evaluation mode; no collective, so ranks may hold unequal shares."""
        ...

    def predict(self, images: Tensor) -> Tensor:
        """Target logits [n, C] in evaluation mode; no collective."""
        ...

    def infer_with_features(self, images: Tensor) -> tuple[Output, Tensor]:
        """Both branches, and the target branch's features [n, F] before its classifier; likewise."""
        ...

    def state_dict(self) -> dict[str, object]:
        """Whole weights, buffers and Adam moments by name, the same of every engine. A collective."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What any engine's `state_dict` returned. A collective. Raises `UserError` for another architecture."""
        ...


def check_engine(config: Config, world: World) -> None:
    """Raises `UserError` for what `build_engine` would refuse to build here, before anything is fetched or opened."""
    check_compile(config.runtime, world)
    if config.engine == "deepspeed":
        make_deepspeed_config(config, world.size)


def build_engine(config: Config, num_classes: int, world: World) -> Engine:
    """The engine of a resolved config. Weights depend on the seed alone, not on rank or world.

    Raises `UserError` where DeepSpeed is wanted and does not import, or its JSON contradicts the config.
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
            f"engine is deepspeed, but it does not import ({reason}); install it with "
            "pip install 'adadf_dist[deepspeed]', or set engine = ddp"
        ) from None
    return module.DeepSpeedEngine(config, num_classes, world, settings)  # type: ignore[no-any-return]


class DDPEngine(BaseEngine):
    """DistributedDataParallel over the ranks of a world; plain at world size 1."""

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
        if self.config.optimizer.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        self.optimizer.step()
        self.update_average()


def wrap_ddp(model: nn.Module) -> DistributedDataParallel:
    """DDP as this model needs it.

    Every parameter has a gradient in every step and buffers agree by construction, so DDP need neither search for
    unused parameters nor broadcast buffers.
    """
    with warnings.catch_warnings():
        # newer releases call the argument by another name, which the oldest supported one does not know
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
