"""Base class of the engines, with the parts they share: model, weight average, Adam optimizer and checkpoint format."""

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
    """Return `runtime.precision`, with `auto` resolved to bf16 on hardware where it is fast, otherwise to fp32."""
    if config.runtime.precision != "auto":
        return config.runtime.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return "bf16" if has_amx else "fp32"


def init_model(config: Config, num_classes: int) -> DualBranch:
    """Build the network with random weights drawn from the seed, leaving the global random state unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return DualBranch(
            config.model, num_classes, auxiliary=not config.loss.is_baseline, image_size=config.data.image_size
        )


def build_model(config: Config, num_classes: int) -> tuple[DualBranch, LoadedWeights]:
    """Build the untrained network, with pretrained weights and a frozen extractor if configured.

    Also returns a record of the pretrained weights.
    """
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
        """Copy of the model whose weights are a moving average, used for evaluation; None if `ema_decay` is 0."""
        self.optimizer = build_optimizer(self.model, config.optimizer, world.device)
        self.learning_rate = config.optimizer.lr

    @property
    def eval_model(self) -> DualBranch:
        """Model used for evaluation, checkpoint selection and export: the weight average, if there is one."""
        return self.average or self.model

    @torch.no_grad()
    def extract(self, images: Tensor) -> Tensor:
        """Return the frozen extractor's outputs [n, ...], as the branches receive them."""
        with self.autocast():
            maps: Tensor = self.eval_model.extractor(self.to_memory_format(images))
        return maps

    def skip_extractor(self) -> None:
        """From now on, expect outputs of the frozen extractor in place of images."""
        for model in (self.model, self.eval_model):
            model.skips_extractor = True

    def set_schedule_step(self, position: Position) -> None:
        self.learning_rate = learning_rate(self.config, position)
        set_learning_rate(self.optimizer, self.learning_rate)

    def update_average(self) -> None:
        """Update the weight average, if there is one, after a training step."""
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
        """Return a context in which every rank has the model's full weights, even if they are otherwise partitioned.

        If the block changes the weights, `changed_by` is the rank whose values are kept.
        """
        return nullcontext()

    def moments(self) -> Moments:
        """Return Adam's full moments by parameter name. Collective: every rank must call this."""
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
    """Update the moving average with the model's weights; copy buffers such as BatchNorm statistics."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    buffers = list(zip(average.buffers(), model.buffers(), strict=True))
    for dtype in {buffer.dtype for buffer, _ in buffers}:  # one kernel for all tensors of a dtype
        own, new = zip(*(pair for pair in buffers if pair[0].dtype == dtype), strict=True)
        torch._foreach_copy_(own, new)


def cpu_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return CPU copies of all parameters and buffers by name, for a checkpoint."""
    return {key: value.detach().to("cpu", copy=True) for key, value in model.state_dict().items()}


def load_model(model: DualBranch, state: object) -> None:
    """Load a model's state dict. Raises `UserError` naming the first tensor that does not match the architecture."""
    assert isinstance(state, Mapping)
    own = model.state_dict()
    for key in [*own, *state]:
        if key not in state or key not in own or own[key].shape != state[key].shape:
            raise UserError(
                f"checkpoint does not match the network at tensor {key}; set model.backbone and loss.supervision to "
                "the values used in training"
            )
    model.load_state_dict(state)
