"""Engine using DeepSpeed ZeRO, which partitions Adam's moments, gradients and weights over ranks.

Weights, moments and gradient sums stay in fp32; only autocast inside the model uses bf16. Checkpoints contain full
tensors by name, as with DDP, rather than DeepSpeed's own format.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
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

from adadf_dist.config.schema import Config
from adadf_dist.distributed.world import World
from adadf_dist.engine.base import BaseEngine
from adadf_dist.engine.optimizer import Moments
from adadf_dist.errors import UserError, single_line
from adadf_dist.method.model import DualBranch, Output

MOMENTS = ("exp_avg", "exp_avg_sq")


class DeepSpeedEngine(BaseEngine):
    """Training engine based on DeepSpeed ZeRO. `settings` is the result of `make_deepspeed_config`."""

    def __init__(self, config: Config, num_classes: int, world: World, settings: dict[str, Any]) -> None:
        # ZeRO flattens weights and communicates them as bytes, which does not support channels last
        super().__init__(config, num_classes, world, weights_as_images=False)
        self.stage = config.deepspeed.zero_stage
        self._copy = copy.deepcopy(self.model) if self.stage == 3 and self.average is None else None
        """Copy of the model with full weights, updated by `sync_for_eval`; only for ZeRO stage 3 without a weight
        average.
        """
        silence_deepspeed()
        try:
            self._engine, self._zero, _, _ = deepspeed.initialize(
                model=_Autocast(self), optimizer=self.optimizer, config=settings, dist_init_required=False
            )
        except (ValueError, TypeError, AssertionError, deepspeed.DeepSpeedConfigError) as error:
            if not config.deepspeed.config_file:
                raise
            reason = single_line(error, 300)
            raise UserError(f"{config.deepspeed.config_file}: DeepSpeed rejects this configuration: {reason}") from None

    @property
    def eval_model(self) -> DualBranch:
        return self._copy or super().eval_model

    def forward(self, images: Tensor) -> Output:
        if not self.model.training:
            self.model.train()
        output: Output = self._engine(self.to_memory_format(images))
        return output

    def step(self, loss: Tensor) -> None:
        self._engine.backward(loss)
        self._engine.step()
        self.update_average()

    def sync_for_eval(self) -> None:
        super().sync_for_eval()
        if self._copy is not None:
            with self.gathered_params():
                self._copy.load_state_dict(self.model.state_dict())

    @contextmanager
    def gathered_params(self, changed_by: int | None = None) -> Iterator[None]:
        parameters = list(self.model.parameters())
        with deepspeed.zero.GatheredParameters(parameters, modifier_rank=changed_by, enabled=self.stage == 3):
            yield
        if changed_by is not None and self.stage:
            self._zero.refresh_fp32_params()

    def _flat_partitions(self) -> list[Tensor]:
        """Return, for each parameter group, the flat tensor of the parameters that Adam updates on this rank."""
        flats: list[Tensor] = (
            self._zero.fp32_partitioned_groups_flat if self.stage == 3 else self._zero.single_partition_of_fp32_groups
        )
        return flats

    def moments(self) -> Moments:
        if not self.stage:
            return super().moments()
        state = self.optimizer.state.get(self._flat_partitions()[0], {})
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

    def load_moments(self, moments: Moments) -> None:
        if not self.stage:
            super().load_moments(moments)
            return
        if not moments:
            for flat in self._flat_partitions():
                self.optimizer.state.pop(flat, None)
            return
        steps = next(iter(moments.values()))["step"]
        for flat in self._flat_partitions():
            empty = {key: torch.zeros_like(flat, requires_grad=False) for key in MOMENTS}
            self.optimizer.state[flat] = {"step": steps.to(flat.device, copy=True), **empty}
        self._link_moments()
        for name, parameter in self.model.named_parameters():
            if name in moments:
                for key in MOMENTS:
                    self._set_moment(parameter, key, moments[name][key].to(self.world.device))

    def _set_moment(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        """Copy this rank's partition of the full moment `value` into the optimizer; `key` is the moment's name."""
        if self.stage < 3:
            safe_set_full_optimizer_state(parameter, value.contiguous(), key)
            return
        # not `full`: it fails on the last rank if the number of ranks does not divide the number of elements
        part = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = nn.functional.pad(value.flatten(), (0, part * self.world.size - value.numel()))
        safe_set_local_optimizer_state(parameter, padded[part * self.world.rank :][:part], key)

    def _link_moments(self) -> None:
        """Link each parameter to its slice of the moments. DeepSpeed itself links the second group's too early."""
        if self.stage < 3:
            for parameters, flat in zip(self._zero.bit16_groups, self._flat_partitions(), strict=True):
                lazy_init_hp_params_optimizer_state(parameters, flat, self.optimizer.state)


class _Autocast(nn.Module):
    """Wrapper that enables autocast inside `forward`, because DeepSpeed disables autocast enabled outside the model."""

    def __init__(self, engine: BaseEngine) -> None:
        super().__init__()
        self.model = engine.model
        self._autocast = engine.autocast

    def forward(self, images: Tensor) -> Output:
        with self._autocast():
            output: Output = self.model(images)
        return output


def silence_deepspeed() -> None:
    """Limit DeepSpeed's log to warnings, and do not compile its shared-memory collectives, which are not used."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
