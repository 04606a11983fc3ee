"""Augmentation of a batch with torch, on any device. As in the Pillow version, images are 8-bit between stages.

The host knows which samples each stage applies to, so it never waits for the device. DALI has operators for most
stages, but its affine warp on a CPU takes longer than all stages here, none of its operators accepts a lookup table per
sample, and the others would require splitting and merging the batch for each kind of stage at each stage index.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from adadf_dist.data.augment.operations import OpKind
from adadf_dist.data.augment.policy import FILL, LUMA, AugmentationBatch

SMOOTH_CENTER, SMOOTH_SUM = 5, 13
"""Weight of the center pixel, and sum of all nine weights, in the 3x3 mean that `sharpen` uses."""

ROUNDING = 2.0**-10
"""Offset added before truncation. It exceeds the float32 rounding error of a weighted mean of four 8-bit values."""
BOTH_TRUE = 0x0101
"""Two adjacent true booleans, read as one int16: comparing with it is faster than `all` over a dimension of size 2."""


def apply_stages(images: Tensor, batch: AugmentationBatch) -> Tensor:
    """Augment `images`, uint8 [n, 3, H, W], in place by applying each sample's stages and flip. Returns `images`."""
    for stage in range(batch.kinds.shape[1]):
        kinds = batch.kinds[:, stage]
        for kind in np.unique(kinds):
            if kind == OpKind.NOTHING:
                continue
            rows = np.flatnonzero(kinds == kind)
            where = to_device_of(rows, images)
            changed = apply_stage(images.index_select(0, where), OpKind(kind), batch, rows, stage)
            images.index_copy_(0, where, changed)
    if batch.flips.any():
        where = to_device_of(np.flatnonzero(batch.flips), images)
        images.index_copy_(0, where, images.index_select(0, where).flip(-1))
    return images


def apply_stage(images: Tensor, kind: OpKind, batch: AugmentationBatch, rows: NDArray[np.int64], stage: int) -> Tensor:
    """Apply stage number `stage`, of kind `kind`, to images [m, 3, H, W], whose parameters are in `rows` of `batch`."""

    def factors() -> Tensor:
        return to_device_of(batch.factors[rows, stage], images).float().view(-1, 1, 1, 1)

    match kind:
        case OpKind.WARP:
            return warp(images, to_device_of(batch.matrices[rows, stage], images).float())
        case OpKind.TABLE:
            return apply_lut(images, to_device_of(batch.tables[rows, stage], images)[:, None])
        case OpKind.COLOR:
            return adjust_saturation(images, factors())
        case OpKind.CONTRAST:
            return contrast(images, factors())
        case OpKind.AUTO_CONTRAST:
            return auto_contrast(images)
        case OpKind.EQUALIZE:
            return equalize(images)
        case OpKind.SHARPNESS:
            return sharpen(images, factors())
        case OpKind.NOTHING:
            return images


def to_device_of(values: NDArray[np.generic], images: Tensor) -> Tensor:
    return torch.from_numpy(values).to(images.device, non_blocking=True)


def warp(images: Tensor, matrices: Tensor) -> Tensor:
    """Warp images by `matrices` [m, 2, 3] with bilinear interpolation. Areas outside the input image become `FILL`."""
    height, width = images.shape[2:]
    # 2 x unit coordinates - 1 (subtracted below): grid_sample's image spans -1 to 1
    x = (torch.arange(width, device=images.device) + 0.5) * (2 / width)
    y = ((torch.arange(height, device=images.device) + 0.5) * (2 / height)).unsqueeze(1)
    # elementwise, not affine_grid: its matrix product may run in TF32, with errors of half a pixel
    a = matrices.view(-1, 6, 1, 1).unbind(1)
    grid = images.new_empty(len(images), height, width, 2, dtype=torch.float32)
    torch.add(a[0] * x, a[1] * y + (2 * a[2] - 1), out=grid[..., 0])
    torch.add(a[3] * x, a[4] * y + (2 * a[5] - 1), out=grid[..., 1])
    sampled = F.grid_sample(images.float(), grid, "bilinear", "border", align_corners=False)
    inside = (grid.abs() < 1).view(torch.int16) == BOTH_TRUE
    fill = to_device_of(np.array(FILL, dtype=np.uint8), images).view(3, 1, 1)
    # truncated like the reference, but rounding may leave the mean of four equal values slightly below them
    sampled = sampled.add_(ROUNDING).to(torch.uint8)
    return torch.where(inside.view(-1, 1, height, width), sampled, fill)


def apply_lut(images: Tensor, tables: Tensor) -> Tensor:
    """Replace pixel values using lookup tables, uint8 [m, 1, 256], or [m, 3, 256] with one table per channel."""
    m, channels = tables.shape[:2]
    starts = torch.arange(0, m * channels * 256, 256, dtype=torch.int32, device=images.device)
    indices = images.view(m, channels, -1).int().add_(starts.view(m, channels, 1))
    return tables.reshape(-1).index_select(0, indices.view(-1)).view_as(images)


def luma(images: Tensor) -> Tensor:
    """Return the luma of each pixel, float32 [m, 1, H, W]."""
    weights = [weight * images[:, channel].float() for channel, weight in enumerate(LUMA)]
    return (weights[0] + weights[1] + weights[2]).unsqueeze(1)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    gray = luma(images)
    return to_uint8(torch.lerp(gray, images.float(), factor).add_(0.5))


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    mean = luma(images).add_(0.5).floor_().mean(dim=(1, 2, 3), keepdim=True).add_(0.5).floor_()
    return to_uint8(torch.lerp(mean, images.float(), factor))


def to_uint8(values: Tensor) -> Tensor:
    return values.clamp_(0, 255).to(torch.uint8)


def auto_contrast(images: Tensor) -> Tensor:
    low, high = (extreme(images, dim=(2, 3)).double().unsqueeze(2) for extreme in (torch.amin, torch.amax))
    scale = 255 / (high - low).clamp_min(1)
    values = torch.arange(256, dtype=torch.float64, device=images.device)
    # double precision and this order, like the reference: the highest value becomes 255, not 254.99
    stretched = (values * scale + -low * scale).clamp_(0, 255).to(torch.uint8)
    return apply_lut(images, torch.where(high > low, stretched, values.to(torch.uint8)))


def equalize(images: Tensor) -> Tensor:
    """Equalize each channel's histogram like Pillow: pixels of the highest value do not count toward the step size."""
    m, channels = images.shape[:2]
    flat = images.view(m * channels, -1).long()
    counts = torch.zeros(m * channels, 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(1, flat, torch.ones_like(flat))
    highest = counts.gather(1, flat.amax(dim=1, keepdim=True))
    step = (flat.shape[1] - highest) // 255
    below = counts.cumsum(dim=1) - counts
    flattened = ((step // 2 + below) // step.clamp_min(1)).clamp_(0, 255)
    unchanged = torch.arange(256, device=images.device)
    tables = torch.where(step > 0, flattened, unchanged).to(torch.uint8)
    return apply_lut(images, tables.view(m, channels, 256))


def sharpen(images: Tensor, factor: Tensor) -> Tensor:
    values = images.to(torch.int16)
    rows = values[:, :, :-2] + values[:, :, 1:-1] + values[:, :, 2:]
    center = values[:, :, 1:-1, 1:-1]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + (SMOOTH_CENTER - 1) * center
    smooth = images.float()
    smooth[:, :, 1:-1, 1:-1] = (sums.float() / SMOOTH_SUM).add_(0.5).floor_()
    return to_uint8(torch.lerp(smooth, images.float(), factor))
