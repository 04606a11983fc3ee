"""Checkpoints of untrained networks with random weights and statistics, none of them neutral."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from adadf_dist.config.load import ConfigLayer, build_config, to_dict
from adadf_dist.config.schema import Config
from adadf_dist.data.preprocessing import Preprocessing
from adadf_dist.engine.base import init_model
from adadf_dist.method.model import DualBranch

SMALL = {"model.backbone": "resnet10", "data.image_size": 32, "data.loader": "torch", "runtime.precision": "fp32"}


def small_config(values: Mapping[str, object]) -> Config:
    return build_config([ConfigLayer("test", {**SMALL, **values})])


def random_network(config: Config, num_classes: int, seed: int = 0) -> DualBranch:
    """A network with random weights in evaluation mode; logits of order 1."""
    torch.manual_seed(seed)
    model = init_model(config, num_classes)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif name.endswith(("running_mean", ".bias")):
                value.normal_(0, 0.1)
            elif ".attention." in name:
                value.normal_(0, 0.2)
            elif name.endswith("num_batches_tracked"):
                value.fill_(7)
    return model.eval()


def save_checkpoint(path: Path, config: Config, model: DualBranch, classes: tuple[str, ...]) -> None:
    """A checkpoint as a run saves it after its third epoch, without metrics and history."""
    num_classes = len(classes)
    progress = {"epoch": 3, "batch": 0, "step": 12, "best_epoch": 3, "best_accuracy": 0.5, "seconds": 1.0, "epochs": []}
    preprocessing = Preprocessing(config.data.image_size, classes, "torch", ten_crop=config.data.ten_crop_resize)
    content = {
        "version": 1,
        "config": to_dict(config),
        "preprocessing": preprocessing.to_dict(),
        "progress": progress,
        "rng": torch.get_rng_state(),
        "engine": {"model": model.state_dict(), "moments": {}},
        "class_distributions": {"distributions": torch.eye(num_classes, dtype=torch.float64)},
    }
    torch.save(content, path)
