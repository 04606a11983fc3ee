"""Base class of the engines: model, weight average and optimizer on a device, and their common checkpoint format."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adadf_dist.config.learning_rate import Position, learning_rate
from adadf_dist.config.schema import Config
from adadf_dist.distributed.world import World
from adadf_dist.engine.batch_norm import average_bn_stats, synchronize_batch_norm
from adadf_dist.engine.inference import InferenceModel
from adadf_dist.engine.optimizer import (
    Moments,
    build_optimizer,
    load_moments,
    optimizer_moments_by_name,
    set_learning_rate,
)
from adadf_dist.errors import UserError
from adadf_dist.method.model import DualBranch
from adadf_dist.method.pretrained import LoadedWeights, load_pretrained

Precision = Literal["fp32", "bf16"]


def resolve_precision(config: Config, device: torch.device) -> Precision:
    """Resolve `runtime.precision` = auto: bf16 if the hardware is fast at it, else fp32."""
    if config.runtime.precision != "auto":
        return config.runtime.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return "bf16" if has_amx else "fp32"


def init_model(config: Config, num_classes: int) -> DualBranch:
    """Build the network with random weights from the seed, without changing the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        auxiliary = config.loss.supervision != "one_hot"
        return DualBranch(config.model, num_classes, auxiliary=auxiliary, image_size=config.data.image_size)


def build_model(config: Config, num_classes: int) -> tuple[DualBranch, LoadedWeights]:
    """Build the network as at the start of training: random or pretrained weights, extractor frozen if configured."""
    model = init_model(config, num_classes)
    return model, load_pretrained(model, config.model)


class BaseEngine(InferenceModel):
    """Model, weight average and optimizer. Subclasses implement the distributed training step."""

    def __init__(self, config: Config, num_classes: int, world: World, weights_as_images: bool = True) -> None:
        self.config = config
        self.world = world
        model, self.weights = build_model(config, num_classes)
        super().__init__(world.device, config.runtime.precision == "bf16")
        layout = self.memory_format if weights_as_images else torch.contiguous_format
        self.model: DualBranch = model.to(world.device, memory_format=layout)  # type: ignore[call-overload]
        if config.runtime.sync_batch_norm:
            synchronize_batch_norm(self.model, world)
        self.average = copy.deepcopy(self.model) if config.optimizer.ema_decay else None
        """Exponential moving average of the weights, used for evaluation; None if off."""
        self.optimizer = build_optimizer(self.model, config.optimizer, world.device)
        self.learning_rate = config.optimizer.lr

    @property
    def eval_model(self) -> DualBranch:
        """The model used for evaluation, selection and export."""
        return self.average or self.model

    def set_schedule_step(self, position: Position) -> None:
        self.learning_rate = learning_rate(self.config, position)
        set_learning_rate(self.optimizer, self.learning_rate)

    def update_average(self) -> None:
        """Update the weight average, if any, after a step."""
        if self.average is not None:
            with self.gathered_params():
                update_ema(self.average, self.model, self.config.optimizer.ema_decay)

    def sync_for_eval(self) -> None:
        self._average_bn_stats()

    def _average_bn_stats(self) -> None:
        """Average unsynchronized BatchNorm statistics over ranks. Collective: every rank must call this."""
        if self.config.runtime.sync_batch_norm or self.world.size == 1:
            return
        average_bn_stats(self.model, self.world)
        if self.average is not None:
            average_bn_stats(self.average, self.world)

    def gathered_params(self, changed_by: int | None = None) -> AbstractContextManager[object]:
        """Context in which the model has full weights; partitioned engines then keep those of rank `changed_by`."""
        return nullcontext()

    def moments(self) -> Moments:
        """Return the full moments by parameter name. Collective if the ranks partition them."""
        return optimizer_moments_by_name(self.model, self.optimizer)

    def load_moments(self, moments: Moments) -> None:
        load_moments(self.model, self.optimizer, moments)

    def state_dict(self) -> dict[str, object]:
        self._average_bn_stats()
        with self.gathered_params():
            state: dict[str, object] = {"model": cpu_state_dict(self.model)}
        state["moments"] = self.moments()
        if self.average is not None:
            state["average"] = cpu_state_dict(self.average)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with self.gathered_params(changed_by=0):
            load_model(self.model, state["model"])
        if self.average is not None:
            load_model(self.average, state["average"])
        self.load_moments(state["moments"])
        self.sync_for_eval()


@torch.no_grad()
def update_ema(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Update the average with the model's weights; BatchNorm statistics are copied, not averaged."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for buffer, new in zip(average.buffers(), model.buffers(), strict=True):
        buffer.copy_(new)


def cpu_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return CPU copies of parameters and buffers by name, as stored in a checkpoint."""
    return {key: value.detach().to("cpu", copy=True) for key, value in model.state_dict().items()}


def load_model(model: DualBranch, state: object) -> None:
    """Load a state. Raises `UserError` with the first tensor that does not match the architecture."""
    assert isinstance(state, Mapping)
    own = model.state_dict()
    for key in [*own, *state]:
        if key not in state or key not in own or own[key].shape != state[key].shape:
            raise UserError(
                f"checkpoint architecture mismatch at {key}; set model.backbone and loss.supervision as in training"
            )
    model.load_state_dict(state)
