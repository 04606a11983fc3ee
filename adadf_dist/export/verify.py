"""Verify an exported file against its checkpoint, and measure its size and speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from adadf_dist.checkpoint.trained_model import TrainedModel
from adadf_dist.distributed.world import DeviceName
from adadf_dist.errors import UserError
from adadf_dist.export.exported_model import load_model
from adadf_dist.export.sample_inputs import SampleInputs

BATCHES = (1, 2, 7)
"""Batch sizes to verify: 1, the size used for tracing (2), and an arbitrary other size."""
TOLERANCE = 1e-4
"""Maximum allowed absolute difference of any logit."""
TIMED_BATCH, TIMED_PASSES = 8, 5


class VerificationResult(NamedTuple):
    """Result of verifying an exported file: logit differences, file size and speed."""

    on_random: float
    """Maximum absolute logit difference on random images."""
    on_faces: float
    bytes: int
    seconds: float
    """Median seconds per image in batches of `TIMED_BATCH`, on the device used for verification."""


def verify_export(
    path: Path, trained: TrainedModel, probes: SampleInputs, device_name: DeviceName = "cpu"
) -> VerificationResult:
    """Compare an exported file's logits, computed on a device, with the checkpoint's logits from the CPU.

    Raises `UserError` if they differ by more than the tolerance.
    """
    model = load_model(path, device_name)

    def logits(images: Tensor) -> Tensor:
        with torch.backends.cudnn.flags(allow_tf32=False):  # its rounding exceeds the tolerance
            return model.logits(images.to(model.device)).cpu()

    on_random, on_faces = (max_abs_diff(logits, trained, images) for images in probes[:2])
    for kind, difference in (("random images", on_random), (probes.source, on_faces)):
        if not difference <= TOLERANCE:  # a NaN does not pass either
            raise UserError(
                f"exported model differs from the checkpoint by {difference:.1e} on {kind} (tolerance {TOLERANCE:g}); "
                "the file was discarded. Try another --opset, or report this as a bug with your torch and onnxruntime "
                "versions"
            )
    return VerificationResult(on_random, on_faces, path.stat().st_size, seconds_per_image(logits, probes.random))


@torch.no_grad()
def max_abs_diff(logits: Callable[[Tensor], Tensor], trained: TrainedModel, images: Tensor) -> float:
    """Return the maximum absolute logit difference from the trained model's target branch, over all batch sizes."""
    worst = torch.zeros(())
    for size in BATCHES:
        rows = images[:size]
        worst = torch.maximum(worst, (logits(rows) - trained.model.predict(rows)).abs().max())
    return float(worst)


@torch.no_grad()
def seconds_per_image(compute: Callable[[Tensor], object], images: Tensor) -> float:
    rows = images[torch.arange(TIMED_BATCH) % len(images)]
    compute(rows)
    passes = []
    for _ in range(TIMED_PASSES):
        started = time.perf_counter()
        compute(rows)
        passes.append(time.perf_counter() - started)
    return median(passes) / TIMED_BATCH
