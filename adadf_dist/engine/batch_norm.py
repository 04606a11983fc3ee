"""BatchNorm over the global batch on GPU and CPU ranks; torch's own `SyncBatchNorm` supports only CUDA tensors."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError


def synchronize_batch_norm(model: nn.Module, world: World) -> nn.Module:
    """Replace each BatchNorm layer by one that normalizes over all ranks' batches. With a single rank, do nothing.

    Raises `UserError` for an unsupported BatchNorm layer.
    """
    if world.size == 1:
        return model
    for name, child in model.named_children():
        if isinstance(child, _BatchNorm):
            setattr(model, name, to_sync_batch_norm(child, world))
        else:
            synchronize_batch_norm(child, world)
    return model


def to_sync_batch_norm(norm: _BatchNorm, world: World) -> nn.Module:
    """Return a synchronized version of a BatchNorm layer, with the same parameters.

    The dropout and activation inside timm's BatchNorm layers are kept. Raises `UserError` for an unsupported layer.
    """
    active = isinstance(getattr(norm, "act", None), nn.Module) and isinstance(getattr(norm, "drop", None), nn.Module)
    plain = type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d) or (active and isinstance(norm, nn.BatchNorm2d))
    if not plain or (world.device.type == "cpu" and not isinstance(norm, nn.BatchNorm2d)):
        raise UserError(
            f"the backbone's {type(norm).__name__} cannot be synchronized across ranks on {world.device.type}; "
            "choose another model.backbone, use one rank, or set runtime.sync_batch_norm = false"
        )
    new: nn.Module
    if world.device.type == "cuda":
        new = nn.SyncBatchNorm.convert_sync_batchnorm(norm)  # type: ignore[no-untyped-call]
    else:
        assert isinstance(norm, nn.BatchNorm2d)
        new = SyncBatchNorm2d.from_batch_norm(norm, world)
    if active:
        new.drop, new.act = norm.drop, norm.act
        new.register_forward_hook(activate)
    return new


def activate(norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Forward hook that applies the dropout and activation built into timm's BatchNorm layers."""
    activated: Tensor = norm.act(norm.drop(output))  # type: ignore[operator]
    return activated


@torch.no_grad()
def average_bn_stats(model: nn.Module, world: World) -> None:
    """Average the running statistics of all BatchNorm layers over ranks. Collective: every rank must call this."""
    statistics = [
        statistic
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        for statistic in (module.running_mean, module.running_var)
        if statistic is not None
    ]
    if not statistics:  # for example a transformer or ConvNeXt
        return
    means = world.all_reduce_sum_(torch.cat([statistic.double() for statistic in statistics])) / world.size
    for statistic, mean in zip(statistics, torch.split(means, list(map(len, statistics))), strict=True):
        statistic.copy_(mean)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that computes its training statistics over the images of all ranks."""

    world: World

    @classmethod
    def from_batch_norm(cls, norm: nn.BatchNorm2d, world: World) -> SyncBatchNorm2d:
        """Build a synchronized layer that shares the parameter and buffer tensors of `norm`."""
        assert norm.affine and norm.track_running_stats and norm.momentum is not None
        new = cls(norm.num_features, norm.eps, norm.momentum)
        new.weight, new.bias = norm.weight, norm.bias
        new.running_mean, new.running_var = norm.running_mean, norm.running_var
        new.num_batches_tracked = norm.num_batches_tracked
        new.training, new.world = norm.training, world
        return new

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        output, mean, variance, count = _SyncBatchNormFunction.apply(
            input, self.weight, self.bias, self.eps, self.world
        )
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = variance * (count / (count - 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        normalized: Tensor = output
        return normalized


class _SyncBatchNormFunction(torch.autograd.Function):
    """Differentiable batch normalization over all ranks, with one all-reduce in each direction.

    The forward pass gathers each rank's count, mean and sum of squared deviations, and merges them by Chan's formula.
    Native kernels make all passes over the data, except for two fused multiply-adds in the input's gradient; the other
    Python code handles only vectors of length C.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        world: World,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = torch.promote_types(input.dtype, torch.float32)
        rows = input.numel() // input.shape[1]
        variance, mean = torch.var_mean(input.to(wide), dim=(0, 2, 3), correction=0)
        local = torch.cat([mean.new_tensor([rows]), mean, variance * rows])
        everyone = torch.zeros(world.size, len(local), dtype=torch.float64, device=local.device)
        everyone[world.rank] = local
        world.all_reduce_sum_(everyone)
        counts, means, squares = torch.split(everyone, [1, len(mean), len(mean)], dim=1)
        count = counts.sum()
        global_mean = (counts * means).sum(dim=0) / count
        square = squares.sum(dim=0) + (counts * (means - global_mean).square()).sum(dim=0)
        mean, variance = global_mean.to(wide), (square / count).to(wide)
        inverse_std = (variance + eps).rsqrt()
        ctx.save_for_backward(input, weight, mean, inverse_std, count)
        ctx.eps, ctx.world = eps, world
        output = F.batch_norm(input, mean, variance, weight, bias, training=False, eps=eps)
        ctx.mark_non_differentiable(mean, variance, count)
        return output, mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *unused: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        input, weight, mean, inverse_std, count = ctx.saved_tensors
        world: World = ctx.world
        _, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            gradient,
            input,
            weight,
            None,
            None,
            mean,
            inverse_std,
            True,
            ctx.eps,
            [False, True, True],
        )
        sums = world.all_reduce_sum_(torch.cat([grad_bias, grad_weight]).double())
        mean_grad, mean_grad_x = (sums / count).to(mean.dtype).chunk(2)
        # dx = w s (dy - mean(dy) - x_hat mean(dy x_hat)): per channel, an affine map of dy plus one of x
        scale = weight * inverse_std
        slope = -scale * inverse_std * mean_grad_x
        offset = -scale * mean_grad - slope * mean
        channels = (1, -1, 1, 1)
        grad_input = torch.addcmul(
            offset.view(channels).to(input.dtype), input, slope.view(channels).to(input.dtype)
        ).addcmul_(gradient, scale.view(channels).to(gradient.dtype))
        return grad_input, grad_weight, grad_bias, None, None
