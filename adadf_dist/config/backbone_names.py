"""Which backbones there are, by name: torchvision's ResNets, and timm's where timm is installed."""

from __future__ import annotations

from adadf_dist.errors import UserError, did_you_mean

RESNETS = ("resnet10", "resnet18", "resnet34", "resnet50", "resnet101")
TIMM = "timm:"
"""What stands before the names of timm."""


def check_backbone(name: str) -> None:
    """Raises `UserError` naming the nearest known backbone, or how to get timm."""
    if name in RESNETS:
        return
    if not name.startswith(TIMM):
        close = did_you_mean(name, RESNETS)
        raise UserError(f"model.backbone is {name!r}; allowed: {', '.join(RESNETS)}, or {TIMM}NAME of timm's{close}")
    try:
        import timm  # seconds: only where one of its names is given
    except ImportError as error:
        raise UserError(
            f"model.backbone is {name}, but timm does not import ({error}); install it with "
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
        raise UserError(f"model.backbone is {name}: timm has no weights {tag!r} of {architecture}; there are {names}")
