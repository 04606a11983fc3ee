"""Pretrained backbone weights: from a file or torchvision, and an exact account of what matched."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor

from adadf_dist.backbone_names import TIMM
from adadf_dist.config import ModelConfig
from adadf_dist.errors import UserError, one_line
from adadf_dist.method.backbones import TIMM_BACKBONES
from adadf_dist.method.model import DualBranch

CONTAINERS = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which training codes wrap a state dict."""
PREFIXES = ("module.", "backbone.", "model.", "encoder.", "net.")
"""What wrappers put before the backbone's own names, which timm and torchvision share."""


class LoadedWeights(NamedTuple):
    """What a run starts from, for its records."""

    source: str
    """File name or `imagenet`; empty for none."""
    sha256: str
    """Of the file's bytes; empty where there is no file."""
    matched: int
    """Tensors taken over."""
    ignored: tuple[str, ...]
    """Tensors of the file with no place here: the old classifier."""


NO_WEIGHTS = LoadedWeights("", "", 0, ())


def load_pretrained(model: DualBranch, config: ModelConfig) -> LoadedWeights:
    """Fill extractor and target branch from `model.pretrained` and copy the target branch to the auxiliary one.

    Freezes the extractor as `model.freeze` says. Raises `UserError` when a tensor of the backbone is missing, has
    another shape, or when the file holds tensors beyond the backbone and a classifier.
    """
    if not config.pretrained:
        if config.freeze == "always":
            raise UserError(
                "model.freeze is 'always' but model.pretrained is empty: random filters would stay random; "
                "give model.pretrained, or use model.freeze auto"
            )
        return NO_WEIGHTS
    if config.pretrained == "imagenet":
        tensors, digest = imagenet_weights(config.backbone, model.image_size), ""
    else:
        tensors, digest = read_weights(Path(config.pretrained))
    ignored = adopt_backbone(model, tensors, config)
    model.copy_target_to_auxiliary()
    if config.freeze != "never":
        model.freeze_extractor()
    name = Path(config.pretrained).name
    return LoadedWeights(name, digest, len(tensors) - len(ignored), ignored)


def imagenet_weights(backbone: str, image_size: int) -> dict[str, Tensor]:
    if backbone.startswith(TIMM):
        fetched: dict[str, Tensor] = import_module(TIMM_BACKBONES).pretrained_weights(backbone, image_size)
        return fetched
    if backbone == "resnet10":
        raise UserError("model.pretrained imagenet: torchvision has no resnet10 weights; use model.backbone resnet18")
    try:
        weights = torchvision.models.get_model_weights(backbone)["IMAGENET1K_V1"]
        return dict(weights.get_state_dict(progress=True, check_hash=True))
    except (URLError, OSError) as error:
        raise UserError(
            f"model.pretrained imagenet: torchvision could not fetch the {backbone} weights ({error}); fetch them "
            "where there is a network and give the file as model.pretrained"
        ) from None


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Tensors by the backbone's own names, and the file's SHA-256."""
    if not path.is_file():
        raise UserError(f"model.pretrained: {path}: no such file")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(
            f"model.pretrained: {path}: not a file of plain tensors ({first_sentence(error)}); "
            "save it again as torch.save(model.state_dict(), path)"
        ) from None
    for container in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(container), Mapping):
            content = content[container]
    if not isinstance(content, Mapping) or not any(isinstance(v, Tensor) for v in content.values()):
        raise UserError(
            f"model.pretrained: {path}: holds no state dict; save one as torch.save(model.state_dict(), path)"
        )
    return {plain_name(key): v for key, v in content.items() if isinstance(v, Tensor)}, digest


def plain_name(key: str) -> str:
    """A parameter's name without what wrappers put before it."""
    shortened = True
    while shortened:
        shortened = False
        for prefix in PREFIXES:
            if key.startswith(prefix):
                key, shortened = key[len(prefix) :], True
    return key


def adopt_backbone(model: DualBranch, tensors: Mapping[str, Tensor], config: ModelConfig) -> tuple[str, ...]:
    """Copy `tensors` into extractor and target branch. Returns the names of the old classifier's tensors."""
    wanted = dict(model.extractor.state_dict())
    wanted |= model.target.stages.state_dict() | model.target.pool.state_dict()
    classifiers = ("fc", "classifier", "head")
    ignored = tuple(sorted(key for key in tensors if key.split(".")[0] in classifiers and key not in wanted))
    counters = {key for key in wanted if key.endswith("num_batches_tracked")}  # absent from old files
    missing = sorted(wanted.keys() - tensors.keys() - counters)
    unexpected = sorted(tensors.keys() - wanted.keys() - set(ignored))
    misshapen = sorted(k for k in wanted.keys() & tensors.keys() if wanted[k].shape != tensors[k].shape)
    for problem, names in (
        ("lacks", missing),
        ("has unknown", unexpected),
        ("has another shape for", misshapen),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(
                f"model.pretrained: {config.pretrained} {problem} {', '.join(names[:3])}{more}; "
                f"is it a {config.backbone}? (model.backbone)"
            )
    for key, tensor in wanted.items():
        if key in tensors:
            tensor.copy_(tensors[key])
    return ignored


def first_sentence(error: BaseException) -> str:
    words = one_line(error, 1000)
    return words.partition(". ")[0][:160] or type(error).__name__
