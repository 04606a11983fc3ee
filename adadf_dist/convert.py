"""Convert a checkpoint of the paper's published code to an adadf_dist checkpoint.

    python -m adadf_dist.convert FILE --classes NAME,NAME,... --out MODEL.pt

The layout, as far as known: `feature.*` is the shared extractor (convolution, BatchNorm, activation, pooling, first
stage), `branch_1.*` the auxiliary and `branch_2.*` the target branch's stages and classifier, `alpha_1.*` and
`alpha_2.*` their attention heads. Parts may be numbered, as in a Sequential, or named. Branch tensors may be duplicated
under `branch_N_feature.*` and `branch_N_classifier.*`. Unknown and missing tensors are errors.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from adadf_dist.checkpoint.progress import TrainingProgress
from adadf_dist.checkpoint.storage import CHECKPOINT_VERSION, save_checkpoint
from adadf_dist.config.load import ConfigLayer, build_config, to_dict
from adadf_dist.config.schema import Config
from adadf_dist.console.exit import cli_errors
from adadf_dist.console.parser import make_parser
from adadf_dist.data.preprocessing import Preprocessing
from adadf_dist.distributed.world import World
from adadf_dist.engine.base import init_model
from adadf_dist.errors import UserError
from adadf_dist.files.outputs import add_overwrite_option, check_output_path
from adadf_dist.method.class_distributions import ClassDistributions
from adadf_dist.method.model import DualBranch
from adadf_dist.method.pretrained import first_few
from adadf_dist.method.weight_files import read_weights, strip_wrapper_prefix

Tensors = Mapping[str, Tensor]

DESCRIPTION = """\
Convert a checkpoint in the layout of the paper's published code (feature.*, branch_1.*, branch_2.*, alpha_1.*,
alpha_2.*) for evaluate, predict, export and train. Unknown or missing tensors are errors; duplicated tensors must be
equal. The file is read as plain tensors; no code in it is executed.
"""
EPILOG = """\
--classes must be in the order of the logits, which the file does not contain. Class orders of the published code:
  RAF-DB     surprise,fear,disgust,happy,sad,anger,neutral
  AffectNet  neutral,happy,sad,surprise,fear,disgust,anger
  SFEW       alphabetical: angry,disgust,fear,happy,neutral,sad,surprise

example:
  python -m adadf_dist.convert rafdb.pth --classes surprise,fear,disgust,happy,sad,anger,neutral --out rafdb.pt
  python -m adadf_dist.predict rafdb.pt FACE.jpg
"""

STAGES = r"branch_[12](?:_feature)?\."
LINEAR = r"(?:(?:0|1|fc|linear|classifier)\.)?(?=(?:weight|bias)$)"
"""Regular expression for the optional module name before `weight` or `bias` in a Linear layer's parameter name."""
NAME_MAP = {
    r"feature\.(?:0|conv1)\.": "extractor.conv1.",
    r"feature\.(?:1|bn1)\.": "extractor.bn1.",
    r"feature\.(?:4|layer1)\.": "extractor.layer1.",
    rf"{STAGES}(?:0|layer2)\.": "BRANCH.stages.layer2.",
    rf"{STAGES}(?:1|layer3)\.": "BRANCH.stages.layer3.",
    rf"{STAGES}(?:2|layer4)\.": "BRANCH.stages.layer4.",
    rf"{STAGES}(?:[3-9]|classifier|fc|head)\.(?=(?:weight|bias)$)": "BRANCH.classifier.",
    rf"branch_[12]_classifier\.{LINEAR}": "BRANCH.classifier.",
    rf"alpha_[12]\.{LINEAR}": "BRANCH.attention.",
}
"""Maps patterns for the start of a published tensor name to the corresponding start of the adadf_dist name. The
classifier's index varies with the pooling and flattening modules before it."""


def map_name(name: str) -> str | None:
    """Return the adadf_dist name of a published tensor, or None if the published name is unknown."""
    for pattern, ours in NAME_MAP.items():
        if found := re.match(pattern, name):
            branch = "auxiliary" if "_1" in found[0] else "target"
            return ours.replace("BRANCH", branch) + name[found.end() :]
    return None


def remap_state_dict(tensors: Tensors, path: Path) -> dict[str, Tensor]:
    """Rename the file's tensors and drop duplicates.

    Raises `UserError` if a tensor is unknown, or differs from the tensor that it should duplicate.
    """
    published: dict[str, str] = {}
    ours: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in tensors.items():
        new_name = map_name(name)
        if new_name is None:
            unknown.append(name)
        elif new_name not in ours:
            published[new_name], ours[new_name] = name, tensor
        elif not torch.equal(ours[new_name], tensor):
            raise UserError(
                f"{path}: tensor {name} should equal {published[new_name]}, but does not; pass another checkpoint"
            )
    if unknown:
        raise UserError(
            f"{path}: unknown tensor{'' if len(unknown) == 1 else 's'} {first_few(unknown)}; pass a checkpoint of the "
            "published code"
        )
    return ours


def load_published(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file, removing wrapper prefixes such as `module.` from their names.

    Raises `UserError` if the file cannot be read or contains no weights.
    """
    try:
        tensors, _ = read_weights(path)
    except UserError as error:
        raise UserError(str(error).removeprefix("model.pretrained: ")) from None
    return {strip_wrapper_prefix(name): tensor for name, tensor in tensors.items()}


def infer_backbone(tensors: Tensors, path: Path) -> str:
    """Return the name of the ResNet whose layer3 has the same blocks. Raises `UserError` if there is none."""
    stage = "target.stages.layer3."
    blocks = {name.removeprefix(stage).partition(".")[0] for name in tensors if name.startswith(stage)}
    bottleneck = f"{stage}0.conv3.weight" in tensors
    known = {
        (1, False): "resnet10",
        (2, False): "resnet18",
        (6, False): "resnet34",
        (6, True): "resnet50",
        (23, True): "resnet101",
    }
    name = known.get((len(blocks), bottleneck))
    if name is None:
        kind = "bottleneck" if bottleneck else "basic"
        raise UserError(
            f"{path}: layer3 has {len(blocks)} {kind} blocks, unlike {', '.join(known.values())}; is it a "
            "checkpoint of the published code?"
        )
    return name


def load_strict(model: DualBranch, tensors: Tensors, path: Path) -> None:
    """Load all tensors into the model.

    Raises `UserError` if tensors are missing or unexpected, or have the wrong shape.
    """
    own = model.state_dict()
    counters = {name for name in own if name.endswith("num_batches_tracked")}  # missing in old files
    for problem, names in (
        ("missing tensors:", [name for name in own if name not in tensors and name not in counters]),
        ("unexpected tensors:", [name for name in tensors if name not in own]),
        ("shape mismatch of", [name for name in tensors if name in own and own[name].shape != tensors[name].shape]),
    ):
        if names:
            raise UserError(f"{path}: {problem} {first_few(names)} (adadf_dist names)")
    model.load_state_dict({**own, **tensors})


def default_config(backbone: str, image_size: int) -> Config:
    """Return the paper's configuration, adapted to the published code where this affects inference."""
    values = {
        "model.backbone": backbone,
        "model.attention_on": "logits",
        "data.image_size": image_size,
        "data.loader": "torch",
        "runtime.precision": "fp32",
        "epochs": 1,
    }
    return build_config([ConfigLayer("the published layout", values)])


def make_checkpoint(model: DualBranch, config: Config, classes: tuple[str, ...]) -> dict[str, object]:
    """Return a checkpoint at epoch 0 with the weights (also used as their average) and initial distributions (eq 7)."""
    weights = model.state_dict()
    distributions = ClassDistributions(len(classes), config.class_distributions, World(torch.device("cpu")))
    return {
        "version": CHECKPOINT_VERSION,
        "config": to_dict(config),
        "preprocessing": Preprocessing(config.data.image_size, classes, config.data.loader).to_dict(),
        "progress": asdict(TrainingProgress()),
        "rng": torch.get_rng_state(),
        "engine": {"model": weights, "average": weights, "moments": {}},
        "class_distributions": distributions.state_dict(),
    }


def convert_checkpoint(path: Path, classes: tuple[str, ...], image_size: int) -> tuple[dict[str, object], str]:
    """Return the converted checkpoint's content and a one-line summary.

    Raises `UserError` if the file is not a checkpoint of the published code, or if `classes` do not match it.
    """
    tensors = load_published(path)
    ours = remap_state_dict(tensors, path)
    backbone = infer_backbone(ours, path)
    outputs = len(ours["target.classifier.weight"]) if "target.classifier.weight" in ours else len(classes)
    if outputs != len(classes):
        raise UserError(f"--classes: {len(classes)} names, but {path} has {outputs} classes")
    config = default_config(backbone, image_size)
    model = init_model(config, len(classes))
    load_strict(model, ours, path)
    summary = f"{len(tensors)} tensors: {len(ours)} converted, {len(tensors) - len(ours)} duplicates"
    return make_checkpoint(model, config, classes), f"{backbone}, {len(classes)} classes, {summary}"


def parse_classes(text: str) -> tuple[str, ...]:
    """Parse comma-separated class names. Raises `UserError` unless there are at least two distinct names."""
    classes = tuple(name.strip() for name in text.split(","))
    if len(classes) < 2 or not all(classes) or len(set(classes)) < len(classes):
        raise UserError(f"--classes {text}: must be at least two distinct, comma-separated names")
    return classes


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("adadf_dist.convert", DESCRIPTION, EPILOG)
    parser.add_argument("file", type=Path, metavar="FILE", help="checkpoint of the published code")
    parser.add_argument("--classes", required=True, metavar="NAMES", help="class names in the order of the logits")
    parser.add_argument("--out", type=Path, required=True, metavar="MODEL.pt", help="checkpoint to write")
    parser.add_argument(
        "--image-size",
        type=int,
        default=224,
        metavar="N",
        help="side of the network input (default: %(default)s)",
    )
    add_overwrite_option(parser, "MODEL.pt")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    with cli_errors("adadf_dist.convert"):
        classes = parse_classes(args.classes)
        check_output_path(args.out, args.overwrite, "--out")
        content, summary = convert_checkpoint(args.file, classes, args.image_size)
        save_checkpoint(content, args.out)
        print(f"{args.out}: {summary}")


if __name__ == "__main__":
    main()
