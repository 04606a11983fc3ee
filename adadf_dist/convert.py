"""Make a checkpoint of ours from one in the layout of the paper's published code, to evaluate, use or go on training.

    python -m adadf_dist.convert FILE --classes NAME,NAME,... --out MODEL.pt

The layout, as far as it is known: `feature.*` is the shared extractor (convolution, BatchNorm, activation, pooling,
first stage), `branch_1.*` the auxiliary and `branch_2.*` the target branch's stages and classifier, `alpha_1.*` and
`alpha_2.*` their attention heads. Parts may be numbered, as in a Sequential, or named. What the branches hold may stand
there once more under `branch_N_feature.*` and `branch_N_classifier.*`. Every tensor is accounted for.
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
from adadf_dist.console.parser import Parser
from adadf_dist.data.preprocessing import Preprocessing
from adadf_dist.distributed.world import World
from adadf_dist.engine.base import init_model
from adadf_dist.errors import UserError
from adadf_dist.files.outputs import add_force_option, check_output_path
from adadf_dist.method.class_distributions import ClassDistributions
from adadf_dist.method.model import DualBranch
from adadf_dist.method.weight_files import read_weights, strip_wrapper_prefix

Tensors = Mapping[str, Tensor]

DESCRIPTION = """\
Turn a checkpoint in the layout of the paper's published code (feature.*, branch_1.*, branch_2.*, alpha_1.*, alpha_2.*)
into one that evaluate, predict, export and train take. Every tensor must find its place, and every place its tensor;
parts that stand there twice must be equal. The file is read as plain tensors: nothing in it is run.
"""
EPILOG = """\
The order of --classes is that of the logits, which the file does not tell. The published code's own, by its data sets:
  RAF-DB     surprise,fear,disgust,happy,sad,anger,neutral
  AffectNet  neutral,happy,sad,surprise,fear,disgust,anger
  SFEW       alphabetical: angry,disgust,fear,happy,neutral,sad,surprise

example:
  python -m adadf_dist.convert rafdb.pth --classes surprise,fear,disgust,happy,sad,anger,neutral --out rafdb.pt
  python -m adadf_dist.predict rafdb.pt FACE.jpg
"""

NAME_MAP = {
    "feature": "extractor",
    "branch_1": "auxiliary.stages",
    "branch_2": "target.stages",
    "branch_1_feature": "auxiliary.stages",
    "branch_2_feature": "target.stages",
    "branch_1_classifier": "auxiliary.classifier",
    "branch_2_classifier": "target.classifier",
    "alpha_1": "auxiliary.attention",
    "alpha_2": "target.attention",
}
"""First word of a published name -> our module."""
SEQUENTIAL_NAMES = {
    "feature": ("conv1", "bn1", None, None, "layer1"),
    "branch": ("layer2", "layer3", "layer4", None, "classifier"),
}
"""What the places of a Sequential are; None: without tensors (activation, pooling)."""
CLASSIFIERS = ("classifier", "fc", "head")


def map_name(name: str, part_names: Sequence[str]) -> str | None:
    """Our name of a published tensor; None for one that is not known.

    `part_names`: the first words below the same part, in the order of the file, which say how it is numbered.
    """
    part, _, rest = name.partition(".")
    ours = NAME_MAP.get(part)
    if ours is None or not rest:
        return None
    leaf = rest.rpartition(".")[2]
    if ours.endswith(("attention", "classifier")):  # a Linear by itself, or first of a Sequential
        return f"{ours}.{leaf}" if re.fullmatch(r"((0|1|fc|linear|classifier)\.)?(weight|bias)", rest) else None
    first, _, below = rest.partition(".")
    first = resolve_sequential_index(part, first, part_names)
    if ours != "extractor" and first in CLASSIFIERS:
        return f"{ours.partition('.')[0]}.classifier.{leaf}" if below in ("weight", "bias") else None
    return f"{ours}.{first}.{below}"


def resolve_sequential_index(part: str, first: str, part_names: Sequence[str]) -> str:
    """`layer2` for the `0` of a branch: what the place of a Sequential is called by us."""
    if not first.isdigit():
        return first
    names = SEQUENTIAL_NAMES["feature" if part == "feature" else "branch"]
    if part != "feature" and first == part_names[-1] and len(part_names) == 4:
        return "classifier"  # wherever pooling and flattening left it
    number = int(first)
    return names[number] or first if number < len(names) else first


def remap_state_dict(tensors: Tensors, path: Path) -> dict[str, Tensor]:
    """The file's tensors by our names, each once. Raises `UserError` for one that is unknown, or unlike its double."""
    below: dict[str, list[str]] = {}
    for name in tensors:
        part, first = (*name.split("."), "")[:2]
        if first not in below.setdefault(part, []):
            below[part].append(first)
    found: dict[str, str] = {}
    ours: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in tensors.items():
        place = map_name(name, below[name.partition(".")[0]])
        if place is None:
            unknown.append(name)
        elif place not in found:
            found[place], ours[place] = name, tensor
        elif not tensors_equal(ours[place], tensor):
            raise UserError(f"{path}: {name} should repeat {found[place]} but differs; the file is of another code")
    if unknown:
        raise UserError(
            f"{path}: {truncate_list(unknown)} {'has' if len(unknown) == 1 else 'have'} no place in this layout"
        )
    return ours


def tensors_equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.equal(a, b))


def truncate_list(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def load_published(path: Path) -> dict[str, Tensor]:
    """Raises `UserError`; the names are without what wrappers (`module.`) put before them."""
    try:
        tensors, _ = read_weights(path)
    except UserError as error:
        raise UserError(str(error).removeprefix("model.pretrained: ")) from None
    return {strip_wrapper_prefix(name): tensor for name, tensor in tensors.items()}


def infer_backbone(tensors: Tensors, path: Path) -> str:
    """The ResNet whose blocks these are. Raises `UserError`."""
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
            f"{path}: has {len(blocks)} {kind} blocks in layer3, which is none of {', '.join(known.values())}; is it a "
            "checkpoint of the published code?"
        )
    return name


def load_strict(model: DualBranch, tensors: Tensors, path: Path) -> None:
    """Every tensor to its place. Raises `UserError` for those left over, missing or of another shape."""
    own = model.state_dict()
    counters = {name for name in own if name.endswith("num_batches_tracked")}  # old files have none
    for problem, names in (
        ("lacks", [name for name in own if name not in tensors and name not in counters]),
        ("has no place here for", [name for name in tensors if name not in own]),
        ("has another shape for", [name for name in tensors if name in own and own[name].shape != tensors[name].shape]),
    ):
        if names:
            raise UserError(f"{path}: {problem} {truncate_list(names)} (names as adadf_dist has them)")
    model.load_state_dict({**own, **tensors})


def default_config(backbone: str, image_size: int) -> Config:
    """The paper's recipe, with the choices of the published code that a network's use depends on."""
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
    """A checkpoint of a run that has not begun: weights, which are their own average, and the distributions of eq 7."""
    weights = model.state_dict()
    alone = World(torch.device("cpu"))
    distributions = ClassDistributions(len(classes), config.class_distributions, alone)
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
    """The content of our checkpoint, and a line that accounts for the file. Raises `UserError`."""
    tensors = load_published(path)
    ours = remap_state_dict(tensors, path)
    backbone = infer_backbone(ours, path)
    outputs = len(ours["target.classifier.weight"]) if "target.classifier.weight" in ours else len(classes)
    if outputs != len(classes):
        raise UserError(f"--classes: {len(classes)} names, but {path} tells {outputs} classes apart")
    config = default_config(backbone, image_size)
    model = init_model(config, len(classes))
    load_strict(model, ours, path)
    account = f"{len(tensors)} tensors: {len(ours)} taken over, {len(tensors) - len(ours)} equal to one of these"
    return make_checkpoint(model, config, classes), f"{backbone}, {len(classes)} classes, {account}"


def parse_classes(text: str) -> tuple[str, ...]:
    """Raises `UserError`."""
    classes = tuple(name.strip() for name in text.split(","))
    if len(classes) < 2 or not all(classes) or len(set(classes)) < len(classes):
        raise UserError(f"--classes {text}: two names or more, each once, with commas between them")
    return classes


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m adadf_dist.convert",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="checkpoint of the published code")
    parser.add_argument("--classes", required=True, metavar="NAMES", help="class names in the order of the logits")
    parser.add_argument("--out", type=Path, required=True, metavar="MODEL.pt", help="checkpoint to write")
    parser.add_argument(
        "--image-size", type=int, default=224, metavar="N", help="side of the network's input (default: %(default)s)"
    )
    add_force_option(parser, "MODEL.pt")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    with cli_errors("adadf_dist.convert"):
        classes = parse_classes(args.classes)
        check_output_path(args.out, args.force, "--out")
        content, account = convert_checkpoint(args.file, classes, args.image_size)
        save_checkpoint(content, args.out)
        print(f"{args.out}: {account}")


if __name__ == "__main__":
    main()
