"""Load pretrained backbone weights from a file, torchvision or timm, and record which tensors matched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

from torch import Tensor

from adadf_dist.config.backbone_names import DLIB_RESNET, TIMM
from adadf_dist.config.schema import ModelConfig
from adadf_dist.errors import UserError
from adadf_dist.method.backbones import TIMM_BACKBONES
from adadf_dist.method.dlib_resnet import STAGES, FeatureHead, MultiStagePool
from adadf_dist.method.model import DualBranch
from adadf_dist.method.weight_files import read_weights
from adadf_dist.method.weight_names import find_backbone

CLASSIFIERS = ("fc", "classifier", "head")
"""Names that pretrained backbones give to their classifier module."""


class LoadedWeights(NamedTuple):
    """Record of the pretrained weights that a run started from."""

    source: str
    """File name, or `imagenet`; empty if the weights are random."""
    sha256: str
    """SHA-256 of the weight file; empty if there is no file."""
    matched: int
    """Number of tensors that were loaded."""
    ignored: tuple[str, ...]
    """Names of tensors in the file that were not used: the file's classifier, and tensors outside the backbone."""

    def describe(self) -> str:
        """Return a one-line summary, such as `resnet18.pth (120 tensors matched)`."""
        if not self.source:
            return "random weights"
        left = f"; ignored: {first_few(self.ignored)}" if self.ignored else ""
        return f"{self.source} ({self.matched} tensors matched{left})"


NO_WEIGHTS = LoadedWeights("", "", 0, ())


def load_pretrained(model: DualBranch, config: ModelConfig) -> LoadedWeights:
    """Load `model.pretrained` into the extractor and both branches; freeze the extractor if `model.freeze` requires it.

    Raises `UserError` if a backbone tensor is missing, not finite or has the wrong shape, or if the backbone's part of
    the file has unknown tensors other than a classifier.
    """
    if not config.pretrained:
        if config.freeze == "always":
            raise UserError(
                "model.freeze is 'always' but model.pretrained is empty: the extractor would stay random; "
                "set model.pretrained, or model.freeze = auto"
            )
        return NO_WEIGHTS
    if config.pretrained == "imagenet":
        tensors, digest = imagenet_weights(config.backbone, model.image_size), ""
    else:
        tensors, digest = read_weights(Path(config.pretrained))
    matched, ignored = load_backbone(model, tensors, config)
    model.copy_target_to_auxiliary()
    if config.freeze != "never":
        model.freeze_extractor()
    name = Path(config.pretrained).name
    return LoadedWeights(name, digest, matched, ignored)


def imagenet_weights(backbone: str, image_size: int) -> dict[str, Tensor]:
    if backbone.startswith(TIMM):
        fetched: dict[str, Tensor] = import_module(TIMM_BACKBONES).pretrained_weights(backbone, image_size)
        return fetched
    if backbone == "resnet10":
        raise UserError("model.pretrained imagenet: torchvision has no resnet10 weights; use model.backbone resnet18")
    if backbone == DLIB_RESNET:
        raise UserError(
            f"model.pretrained imagenet: {DLIB_RESNET} has only face recognition weights",
            "set model.pretrained to the file that `python -m adadf_dist.weights dlib` writes",
        )
    import torchvision

    try:
        weights = torchvision.models.get_model_weights(backbone)["IMAGENET1K_V1"]
        return dict(weights.get_state_dict(progress=True, check_hash=True))
    except PermissionError as error:
        raise UserError(
            f"model.pretrained imagenet: the {backbone} weights cannot be stored in {error.filename} "
            f"({error.strerror}); set TORCH_HOME to a writable folder"
        ) from None
    except (URLError, OSError) as error:
        raise UserError(
            f"model.pretrained imagenet: torchvision could not download the {backbone} weights ({error}); "
            "download them on a machine with network access and set model.pretrained to the file"
        ) from None


def load_backbone(model: DualBranch, tensors: Mapping[str, Tensor], config: ModelConfig) -> tuple[int, tuple[str, ...]]:
    """Copy `tensors` into the extractor and target branch. Returns the number loaded and the unused names.

    A `FeatureHead` keeps its random weights if the file has none of its tensors.
    """
    wanted = dict(model.extractor.state_dict())
    wanted |= model.target.stages.state_dict() | model.target.pool.state_dict()
    try:
        found = find_backbone(tensors, wanted)
    except UserError as error:
        raise UserError(f"model.pretrained: {config.pretrained} {error}") from None
    inside = found.inside
    ignored = [key for key in inside if key.split(".")[0] in CLASSIFIERS and key not in wanted]
    if isinstance(model.extractor, MultiStagePool):  # has no use for the last stages
        ignored += [key for key in inside if key.split(".")[0] in STAGES and key not in wanted]
    counters = {key for key in wanted if key.endswith("num_batches_tracked")}  # missing in old files
    head = model.target.stages.state_dict().keys() if isinstance(model.target.stages, FeatureHead) else set()
    optional = counters if head & inside.keys() else counters | head
    missing = sorted(wanted.keys() - inside.keys() - optional)
    unexpected = sorted(inside.keys() - wanted.keys() - set(ignored))
    matched = [key for key in wanted if key in inside]
    misshapen = sorted(key for key in matched if wanted[key].shape != inside[key].shape)
    for problem, names in (
        ("is missing", missing),
        ("has unknown tensors", unexpected),
        ("has a different shape for", misshapen),
    ):
        if names:
            raise UserError(
                f"model.pretrained: {config.pretrained} {problem} {first_few(names)}; "
                f"is it a {describe_backbone(config)}"
            )
    broken = [key for key in matched if inside[key].is_floating_point() and not inside[key].isfinite().all()]
    if broken:
        raise UserError(
            f"model.pretrained: {config.pretrained} has NaN or infinite values in {first_few(broken)}: its "
            "training probably diverged; use an earlier checkpoint or other weights"
        )
    for key in matched:
        wanted[key].copy_(inside[key])
    return len(matched), (*sorted(ignored), *found.outside)


def describe_backbone(config: ModelConfig) -> str:
    """Describe the configured backbone and name the keys that determine it, as the end of a question."""
    if (config.stem, config.width) == ("standard", 1.0):
        return f"{config.backbone}, as set by model.backbone?"
    keys = "model.backbone, model.width and model.stem"
    return f"{config.backbone} of width {config.width} with the {config.stem} stem, as set by {keys}?"


def first_few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
