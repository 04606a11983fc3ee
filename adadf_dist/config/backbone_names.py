"""Names of the available backbones: torchvision's ResNets, dlib's, and timm models if timm is installed."""

from __future__ import annotations

from adadf_dist.errors import UserError, did_you_mean

RESNETS = ("resnet10", "resnet18", "resnet34", "resnet50", "resnet101")
DLIB_RESNET = "dlib_resnet29"
"""The network of dlib's face recognition."""
BACKBONES = (*RESNETS, DLIB_RESNET)
TIMM = "timm:"
"""Prefix of timm model names."""


def check_backbone(name: str) -> None:
    """Raise `UserError` for an unknown backbone, with the closest known name or how to install timm."""
    if name in BACKBONES:
        return
    if not name.startswith(TIMM):
        close = did_you_mean(name, BACKBONES)
        raise UserError(
            f"model.backbone is {name!r}; allowed: {', '.join(BACKBONES)}, or {TIMM}NAME for a timm model{close}"
        )
    try:
        import timm  # takes seconds, so imported only when needed
    except ImportError as error:
        raise UserError(
            f"model.backbone is {name}, but timm cannot be imported ({error}); install it with "
            "pip install 'adadf_dist[timm]'"
        ) from None
    own = name.removeprefix(TIMM)
    architecture, _, tag = own.partition(".")
    known = timm.list_models()
    if architecture not in known:
        close = did_you_mean(architecture, known).replace("mean ", f"mean {TIMM}")
        raise UserError(f"model.backbone is {name}, which timm {timm.__version__} does not have{close}")
    tagged = timm.list_models(f"{architecture}.*", pretrained=True)
    if tag and own not in tagged:
        names = ", ".join(tag.partition(".")[2] for tag in tagged) or "none"
        raise UserError(f"model.backbone is {name}: timm has no weights {tag!r} for {architecture}; available: {names}")
