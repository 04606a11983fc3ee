"""Interface of the training engines, and the engine that uses DistributedDataParallel (DDP)."""

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
"""Module imported only when needed, because DeepSpeed is an optional dependency."""


class Engine(Protocol):
    """Interface of the training engines (DDP and DeepSpeed)."""

    model: DualBranch
    weights: LoadedWeights
    learning_rate: float

    @property
    def eval_model(self) -> DualBranch:
        """The model used for evaluation, with full weights."""
        ...

    def set_schedule_step(self, position: Position) -> None:
        """Set the learning rate for the training step at `position`."""
        ...

    def forward(self, images: Tensor) -> Output:
        """Run both branches on images [n, 3, H, W] in training mode, with gradients."""
        ...

    def step(self, loss: Tensor) -> None:
        """Run the backward pass and the optimizer step. The mean of `loss` over ranks is the global loss."""
        ...

    def sync_for_eval(self) -> None:
        """Synchronize the ranks' models before an evaluation. Collective: every rank must call this."""
        ...

    def forward_eval(self, images: Tensor) -> Output:
        """Run both branches in evaluation mode. Not a collective, so ranks may run different numbers of batches."""
        ...

    def predict(self, images: Tensor) -> Tensor:
        """Return the target branch's logits [n, C] in evaluation mode. Not a collective."""
        ...

    def infer_with_features(self, images: Tensor) -> tuple[Output, Tensor]:
        """Run both branches in evaluation mode; also return the target branch's features [n, F]. Not a collective."""
        ...

    def extract(self, images: Tensor) -> Tensor:
        """Return the frozen extractor's outputs [n, ...]. No collective."""
        ...

    def skip_extractor(self) -> None:
        """From now on, expect outputs of the frozen extractor in place of images."""
        ...

    def state_dict(self) -> dict[str, object]:
        """Return the full weights, buffers and Adam moments by name. Collective: every rank must call this."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the `state_dict` of any engine. Collective: every rank must call this.

        Raises `UserError` if it belongs to another architecture.
        """
        ...


def check_engine(config: Config, world: World) -> None:
    """Raise `UserError` for an invalid engine configuration, before anything is downloaded or opened."""
    check_compile(config.runtime, world)
    if config.engine == "deepspeed":
        make_deepspeed_config(config, world.size)


def build_engine(config: Config, num_classes: int, world: World) -> Engine:
    """Build the configured engine. Initial weights depend only on the seed, not on the rank or the number of ranks.

    Raises `UserError` if DeepSpeed is configured but cannot be imported, or if its JSON file contradicts `config`.
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
            f"engine is deepspeed, but DeepSpeed cannot be imported ({reason}); install it with "
            "pip install 'adadf_dist[deepspeed]', or set engine = ddp"
        ) from None
    return module.DeepSpeedEngine(config, num_classes, world, settings)  # type: ignore[no-any-return]


class DDPEngine(BaseEngine):
    """Training engine based on DistributedDataParallel; a single rank trains the model without this wrapper."""

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
    """Wrap the model in DistributedDataParallel, without broadcasting buffers or searching for unused parameters.

    Neither is needed: every parameter has a gradient in every step, and buffers are synchronized elsewhere.
    """
    with warnings.catch_warnings():
        # newer releases rename the argument; the oldest supported one only has this name
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
