"""Export a trained network, verify each file against the checkpoint, and write a model card.

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
from adadf_dist.console.logs import get_logger
from adadf_dist.console.parser import add_device_option, make_parser
from adadf_dist.data.dataset import Dataset
from adadf_dist.data.identity import ALLOW_OTHER_DATA, how_to_fix
from adadf_dist.distributed.world import DeviceName, pick_device
from adadf_dist.errors import UserError
from adadf_dist.export import safetensors_format, torch_export_format
from adadf_dist.export.exported_model import ONNX_FILE
from adadf_dist.export.metadata import ExportMetadata, make_metadata
from adadf_dist.export.model_card import write_card
from adadf_dist.export.sample_inputs import difference_of, find_dataset, make_sample_inputs
from adadf_dist.export.target_network import TargetNetwork
from adadf_dist.export.verify import BATCHES, VerificationResult, seconds_per_image, verify_export
from adadf_dist.files.outputs import add_overwrite_option, atomic_file, check_output_path, write_output

logger = get_logger(__name__)

Write = Callable[[TargetNetwork, ExportMetadata, Path], None]

DESCRIPTION = """\
Export the target branch of a trained network, which is all that inference needs, as ONNX, safetensors or a torch.export
program. It maps normalized images [n, 3, H, W] to logits [n, C] (softmax gives probabilities) for any batch size. Each
file contains class names, preprocessing and provenance as metadata. A file is kept only if its logits match the
checkpoint's on random images and on faces. A model card is written next to the first file.
"""
EPILOG = """\
RUN is a run directory (its selected epoch) or a checkpoint; the single-label baseline can be exported too.

examples:
  python -m adadf_dist.export runs/demo-seed0 --onnx demo.onnx
  python -m adadf_dist.export runs/rafdb-seed0/checkpoints/selected.pt --safetensors rafdb.safetensors
  python -m adadf_dist.predict demo.onnx photo.jpg
"""
ENDINGS = {"onnx": ".onnx", "safetensors": ".safetensors", "torch_export": ".pt2"}
"""Option -> required file extension, from which `adadf_dist.predict` recognizes the format."""


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("adadf_dist.export", DESCRIPTION, EPILOG)
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory or checkpoint")
    for option, ending in ENDINGS.items():
        flag = f"--{option.replace('_', '-')}"
        parser.add_argument(flag, type=Path, metavar="FILE", help=f"export to this {ending} file")
    parser.add_argument("--opset", type=int, metavar="N", help="ONNX opset (default: 18, which most runtimes support)")
    parser.add_argument(
        "--model-card",
        type=Path,
        metavar="FILE",
        help="model card (default: the first file's name with the extension .md, or with .md appended if that card "
        "already exists)",
    )
    parser.add_argument("--shards", default="", metavar="DIR", help="new location of the run's dataset, if it moved")
    parser.add_argument(
        ALLOW_OTHER_DATA,
        action="store_true",
        help="describe the available dataset even if it differs from the run's training data (different digest)",
    )
    parser.add_argument("--data-license", default="", metavar="TEXT", help="license of the data, for the model card")
    add_device_option(parser, "cpu", "device on which each file is verified and timed")
    add_overwrite_option(parser, "a file")
    args = parser.parse_args(argv)
    if not any(getattr(args, option) for option in ENDINGS):
        parser.error("pass --onnx, --safetensors or --torch-export")
    if args.opset is not None and args.onnx is None:
        parser.error("--opset requires --onnx")
    return args


def find_writers(args: argparse.Namespace) -> dict[Path, Write]:
    """Return the function that writes each requested file. Raises `UserError` for invalid options."""
    writers: dict[Path, Write] = {}
    for option, ending in ENDINGS.items():
        path: Path | None = getattr(args, option)
        if path is None:
            continue
        if path.suffix != ending:
            raise UserError(f"--{option.replace('_', '-')} {path}: use the extension {ending}")
        writers[path] = find_writer(option, args.opset)
    return writers


def find_card(args: argparse.Namespace, first: Path) -> Path:
    """Return the path of the model card. The default does not overwrite the card of an earlier export."""
    if args.model_card is not None:
        return Path(args.model_card)
    card = first.with_suffix(".md")
    return card if args.overwrite or not card.exists() else first.with_name(f"{first.name}.md")


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
    """Return the run's dataset (None if unavailable) and how it differs from the training data.

    Raises `UserError` if it differs and `allow_other_data` is not set.
    """
    dataset = find_dataset(trained, shards)
    difference = difference_of(trained, dataset)
    if difference and not allow_other_data:
        raise UserError(f"{trained.path}: {difference}; {how_to_fix('--shards DIR')}")
    if dataset is not None and trained.data is None and not shards:
        warning = f"{trained.path}: written by an older version without a digest of its data"
        logger.warning(f"{warning}; cannot verify {dataset.folder}")
    return dataset, difference


def export(
    trained: TrainedModel, dataset: Dataset | None, writers: dict[Path, Write], device_name: DeviceName = "cpu"
) -> ExportMetadata:
    """Write and verify the files, and print one line about each. Raises `UserError` if a file fails verification."""
    facts, probes = make_metadata(trained), make_sample_inputs(trained, dataset, max(BATCHES))
    network = TargetNetwork(trained.model)
    whole = sum(tensor.nbytes for tensor in trained.model.state_dict().values())
    pace = seconds_per_image(trained.model, probes.random)
    branches = "target branch only (baseline)" if trained.model.auxiliary is None else "both branches"
    size_and_pace = f"weights {whole / 1e6:.1f} MB, {pace * 1e3:.1f} ms per image"
    print(f"{trained.path}: epoch {trained.epoch}, {branches}, {size_and_pace}")
    print(
        f"verifying against the checkpoint on random images and {probes.source} "
        f"(batch sizes {', '.join(map(str, BATCHES))}), device {device_name}"
    )
    for path, write in writers.items():
        with atomic_file(path) as partial:
            write(network, facts, partial)
            found = verify_export(partial, trained, probes, device_name)
        print(describe(path, found, pace), flush=True)
    return facts


def describe(path: Path, found: VerificationResult, pace: float) -> str:
    speed = f"{found.seconds * 1e3:.1f} ms per image ({pace / found.seconds:.1f}x the checkpoint's speed)"
    off = f"max. logit difference {found.on_random:.1e} on random images, {found.on_faces:.1e} on faces"
    return f"{path}: {found.bytes / 1e6:.1f} MB, {speed}, {off}"


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    with cli_errors("adadf_dist.export"):
        writers = find_writers(args)
        card = find_card(args, next(iter(writers)))
        if card.suffix in ENDINGS.values():
            raise UserError(f"--model-card {card}: has the extension of a model file; use .md")
        pick_device(args.device)  # fail now if there is none
        for path in (*writers, card):
            check_output_path(path, args.overwrite)
        trained = load_trained_model(args.run)
        dataset, difference = open_data_of(trained, args.shards, args.allow_other_data)
        if difference:
            logger.warning(f"the run {difference} ({ALLOW_OTHER_DATA})")
        facts = export(trained, dataset, writers, args.device)
        text = write_card(trained, facts, list(writers), (dataset, difference), args.data_license)
        write_output(card, text)
        print(f"{card}: model card")


if __name__ == "__main__":
    main()
