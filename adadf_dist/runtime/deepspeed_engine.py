"""A step by DeepSpeed's ZeRO: the ranks share out Adam's moments, gradients, weights.

Weights, moments and sums stay in fp32; bf16 is autocast's, inside the model. DeepSpeed's own folders of checkpoints are
not written: what is saved is whole and by name, as DDP saves it.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    lazy_init_hp_params_optimizer_state,
    safe_get_full_optimizer_state,
    safe_set_full_optimizer_state,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from adadf_dist.config import Config
from adadf_dist.errors import UserError
from adadf_dist.method.model import DualBranch, Output
from adadf_dist.runtime.network import Network, load_model, on_cpu, update_average
from adadf_dist.runtime.optim import (
    Moment,
    Moments,
    build_optimizer,
    learning_rate,
    load_moments,
    moments_by_name,
    set_learning_rate,
)
from adadf_dist.world import World

MOMENTS = ("exp_avg", "exp_avg_sq")


class DeepSpeedEngine(Network):
    """DeepSpeed's engine around the network; `settings` from `deepspeed_settings`."""

    def __init__(self, config: Config, num_classes: int, world: World, settings: dict[str, Any]) -> None:
        # ZeRO lays weights end to end and sends them as bytes: neither knows channels last
        super().__init__(config, num_classes, world, weights_as_images=False)
        self.stage = config.deepspeed.zero_stage
        self._whole = copy.deepcopy(self.model) if self.stage == 3 and self.average is None else None
        """Under ZeRO 3: whole weights to evaluate with, as of the last `consolidate`."""
        quieten()
        self._optimizer = build_optimizer(self.model, config.optimizer, world.device)
        try:
            self._engine, self._zero, _, _ = deepspeed.initialize(
                model=_Autocast(self), optimizer=self._optimizer, config=settings, dist_init_required=False
            )
        except (ValueError, TypeError, AssertionError, deepspeed.DeepSpeedConfigError) as error:
            if not config.deepspeed.config:
                raise
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{config.deepspeed.config}: DeepSpeed does not take it: {reason}") from None

    @property
    def evaluated(self) -> DualBranch:
        return self._whole or super().evaluated

    def schedule(self, moment: Moment) -> None:
        self.learning_rate = learning_rate(self.config, moment)
        set_learning_rate(self._optimizer, self.learning_rate)

    def forward(self, images: Tensor) -> Output:
        if not self.model.training:
            self.model.train()
        output: Output = self._engine(self.arrange(images))
        return output

    def step(self, loss: Tensor) -> None:
        self._engine.backward(loss)
        self._engine.step()
        if self.average is not None:
            with self._gathered():
                update_average(self.average, self.model, self.config.optimizer.ema)

    def consolidate(self) -> None:
        super().consolidate()
        if self._whole is not None:
            with self._gathered():
                self._whole.load_state_dict(self.model.state_dict())

    def state_dict(self) -> dict[str, object]:
        super().consolidate()
        with self._gathered():
            state: dict[str, object] = {"model": on_cpu(self.model)}
        state["moments"] = self._moments()
        if self.average is not None:
            state["average"] = on_cpu(self.average)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with self._gathered(modifier=0):
            load_model(self.model, state["model"])
        if self.average is not None:
            load_model(self.average, state["average"])
        if self.stage:
            self._zero.refresh_fp32_params()
        self._load_moments(state["moments"])
        self.consolidate()

    @contextmanager
    def _gathered(self, modifier: int | None = None) -> Iterator[None]:
        """Whole weights in the model for a while; what rank `modifier` made of them stays."""
        with deepspeed.zero.GatheredParameters(
            list(self.model.parameters()), modifier_rank=modifier, enabled=self.stage == 3
        ):
            yield

    def _flats(self) -> list[Tensor]:
        """What Adam steps on this rank: its parts of the parameters of a group, end to end."""
        flats: list[Tensor] = (
            self._zero.fp32_partitioned_groups_flat if self.stage == 3 else self._zero.single_partition_of_fp32_groups
        )
        return flats

    def _moments(self) -> Moments:
        if not self.stage:
            return moments_by_name(self.model, self._optimizer)
        state = self._optimizer.state.get(self._flats()[0], {})
        if "step" not in state:
            return {}
        self._link_moments()
        return {
            name: {
                "step": state["step"].detach().cpu().clone(),
                **{key: safe_get_full_optimizer_state(parameter, key).cpu() for key in MOMENTS},
            }
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }

    def _load_moments(self, moments: Moments) -> None:
        if not self.stage:
            load_moments(self.model, self._optimizer, moments)
            return
        if not moments:
            for flat in self._flats():
                self._optimizer.state.pop(flat, None)
            return
        steps = next(iter(moments.values()))["step"]
        for flat in self._flats():
            empty = {key: torch.zeros_like(flat, requires_grad=False) for key in MOMENTS}
            self._optimizer.state[flat] = {"step": steps.to(flat.device, copy=True), **empty}
        self._link_moments()
        for name, parameter in self.model.named_parameters():
            if name in moments:
                for key in MOMENTS:
                    self._set_moment(parameter, key, moments[name][key].to(self.world.device))

    def _set_moment(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        """This rank's part of a whole moment."""
        if self.stage < 3:
            safe_set_full_optimizer_state(parameter, value.contiguous(), key)
            return
        # not `full`: it fails on the last rank where the ranks do not divide the elements
        part = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = nn.functional.pad(value.flatten(), (0, part * self.world.size - value.numel()))
        safe_set_local_optimizer_state(parameter, padded[part * self.world.rank :][:part], key)

    def _link_moments(self) -> None:
        """Show each parameter its part of the moments; DeepSpeed does so before it has stepped the second group."""
        if self.stage < 3:
            for parameters, flat in zip(self._zero.bit16_groups, self._flats(), strict=True):
                lazy_init_hp_params_optimizer_state(parameters, flat, self._optimizer.state)


class _Autocast(nn.Module):
    """The model under our precision: DeepSpeed switches off an autocast that surrounds its own forward."""

    def __init__(self, engine: Network) -> None:
        super().__init__()
        self.model = engine.model
        self._autocast = engine.autocast

    def forward(self, images: Tensor) -> Output:
        with self._autocast():
            output: Output = self.model(images)
        return output


def quieten() -> None:
    """Warnings only, and no compiler at work for shared-memory collectives that training does not use."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
