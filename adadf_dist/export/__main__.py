"""Export a trained network for others, each file checked against the checkpoint, a model card beside.

python -m adadf_dist.export RUN --onnx model.onnx --safetensors model.safetensors
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from adadf_dist.checkpoint.trained_model import TrainedModel, load_trained_model
from adadf_dist.console.exit import cli_errors
from adadf_dist.console.parser import Parser
from adadf_dist.data.dataset import Dataset
from adadf_dist.data.identity import ALLOW_OTHER_DATA, how_to_fix
from adadf_dist.errors import UserError
from adadf_dist.export import safetensors_format, torch_export_format
from adadf_dist.export.exported_model import ONNX_FILE
from adadf_dist.export.metadata import ExportMetadata, make_metadata
from adadf_dist.export.model_card import write_card
from adadf_dist.export.sample_inputs import difference_of, find_dataset, make_sample_inputs
from adadf_dist.export.target_network import TargetNetwork
from adadf_dist.export.verify import BATCHES, VerificationResult, seconds_per_image, verify_export
from adadf_dist.files.outputs import add_force_option, atomic_file, check_output_path, write_output

Write = Callable[[TargetNetwork, ExportMetadata, Path], None]

DESCRIPTION = """\
Write the target branch of a trained network, all that inference needs, as ONNX, safetensors or a torch.export program:
normalised images [n, 3, H, W] to logits [n, C] (softmax gives probabilities), for batches of any size. Class names,
preprocessing and provenance go into each file's metadata. A file gets its name once it answered as the checkpoint does,
on random images and on faces. A model card is written beside.
"""
EPILOG = """\
RUN is a run folder (its selected epoch) or a checkpoint; the single-label baseline exports too.

examples:
  python -m adadf_dist.export runs/demo-seed0 --onnx demo.onnx
  python -m adadf_dist.export runs/rafdb-seed0/checkpoints/selected.pt --safetensors rafdb.safetensors
  python -m adadf_dist.predict demo.onnx photo.jpg
"""
ENDINGS = {"onnx": ".onnx", "safetensors": ".safetensors", "torch_export": ".pt2"}
"""Option -> how its file's name ends, by which `adadf_dist.predict` knows it."""


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m adadf_dist.export",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder or checkpoint")
    for option, ending in ENDINGS.items():
        flag = f"--{option.replace('_', '-')}"
        parser.add_argument(flag, type=Path, metavar="FILE", help=f"write this file, which ends in {ending}")
    parser.add_argument(
        "--opset", type=int, metavar="N", help="of the ONNX file (default: 18, which most runtimes read)"
    )
    parser.add_argument(
        "--card",
        type=Path,
        metavar="FILE",
        help="model card (default: the first file's name with .md in place of its ending, or after its ending where "
        "that card already exists)",
    )
    parser.add_argument(
        "--data.shards", dest="shards", default="", metavar="DIR", help="the run's dataset, if it moved"
    )
    parser.add_argument(
        ALLOW_OTHER_DATA,
        action="store_true",
        help="describe the dataset that is there although the run was trained on another one (its digest differs)",
    )
    parser.add_argument("--data-licence", default="", metavar="TEXT", help="what the card says of the data's licence")
    add_force_option(parser, "a file")
    args = parser.parse_args(argv)
    if not any(getattr(args, option) for option in ENDINGS):
        parser.error("give --onnx, --safetensors or --torch-export")
    if args.opset is not None and args.onnx is None:
        parser.error("--opset is for --onnx")
    return args


def find_writers(args: argparse.Namespace) -> dict[Path, Write]:
    """The files wanted, and who writes each. Raises `UserError` for what cannot be written, before any work."""
    writers: dict[Path, Write] = {}
    for option, ending in ENDINGS.items():
        path: Path | None = getattr(args, option)
        if path is None:
            continue
        if path.suffix != ending:
            raise UserError(
                f"--{option.replace('_', '-')} {path}: name it to end in {ending}, by which it is known later"
            )
        writers[path] = find_writer(option, args.opset)
    return writers


def find_card(args: argparse.Namespace, first: Path) -> Path:
    """Where the model card goes. The card of an export in another format is left alone."""
    if args.card is not None:
        return Path(args.card)
    card = first.with_suffix(".md")
    return card if args.force or not card.exists() else first.with_name(f"{first.name}.md")


def find_writer(option: str, opset: int | None) -> Write:
    if option == "safetensors":
        return safetensors_format.write
    if option == "torch_export":
        return torch_export_format.write
    onnx_file = import_module(ONNX_FILE)
    chosen = onnx_file.OPSET if opset is None else opset
    onnx_file.check_opset(chosen)
    return lambda network, facts, path: onnx_file.write(network, facts, path, chosen)


def open_data_of(trained: TrainedModel, shards: str, allow_other_data: bool) -> tuple[Dataset | None, str]:
    """The run's dataset, where it is available, and how it differs from the one recorded, where that is allowed.

    Raises `UserError` where it is not.
    """
    dataset = find_dataset(trained, shards)
    difference = difference_of(trained, dataset)
    if difference and not allow_other_data:
        raise UserError(f"{trained.path}: {difference}; {how_to_fix()}")
    if dataset is not None and trained.data is None and not shards:
        warning = f"{trained.path}: written by an older version, which recorded no digest of its data"
        print(f"warning: {warning}: is {dataset.folder} the same?", file=sys.stderr, flush=True)
    return dataset, difference


def export(trained: TrainedModel, dataset: Dataset | None, writers: dict[Path, Write]) -> ExportMetadata:
    """Write, check and name each file, with a line for each. Raises `UserError`."""
    facts, probes = make_metadata(trained), make_sample_inputs(trained, dataset, max(BATCHES))
    network = TargetNetwork(trained.model)
    whole = sum(tensor.nbytes for tensor in trained.model.state_dict().values())
    pace = seconds_per_image(trained.model, probes.random)
    branches = "target branch alone (the baseline)" if trained.model.auxiliary is None else "both branches"
    size_and_pace = f"weights of {whole / 1e6:.1f} MB, {pace * 1e3:.1f} ms an image"
    print(f"{trained.path}: epoch {trained.epoch}, {branches}, {size_and_pace}")
    print(f"checked on random images and on {probes.whose}, in batches of {', '.join(map(str, BATCHES))}")
    for path, write in writers.items():
        with atomic_file(path) as partial:
            write(network, facts, partial)
            found = verify_export(partial, trained, probes)
        print(describe(path, found, pace), flush=True)
    return facts


def describe(path: Path, found: VerificationResult, pace: float) -> str:
    speed = f"{found.seconds * 1e3:.1f} ms an image ({pace / found.seconds:.1f} times as fast)"
    off = f"logits off by {found.on_random:.1e} on random images and {found.on_faces:.1e} on faces"
    return f"{path}: {found.bytes / 1e6:.1f} MB, {speed}, {off}"


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    with cli_errors("adadf_dist.export"):
        writers = find_writers(args)
        card = find_card(args, next(iter(writers)))
        if card.suffix in ENDINGS.values():
            raise UserError(f"--card {card}: ends as a model file does; name the card to end in .md")
        for path in (*writers, card):
            check_output_path(path, args.force)
        trained = load_trained_model(args.run)
        dataset, difference = open_data_of(trained, args.shards, args.allow_other_data)
        if difference:
            print(f"warning: the run {difference} ({ALLOW_OTHER_DATA})", file=sys.stderr, flush=True)
        facts = export(trained, dataset, writers)
        text = write_card(trained, facts, list(writers), (dataset, difference), args.data_licence)
        write_output(card, text)
        print(f"{card}: model card")


if __name__ == "__main__":
    main()
