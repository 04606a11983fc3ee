"""Predict facial expressions in image files, folders, datasets, or paths read from standard input.

python -m adadf_dist.predict MODEL photo.jpg more/ --align --format csv
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import TextIO

import torch
from tqdm import tqdm

from adadf_dist.console.exit import cli_errors
from adadf_dist.console.logs import get_logger
from adadf_dist.console.parser import add_device_option, make_parser
from adadf_dist.errors import UserError
from adadf_dist.export.exported_model import ExportedModel, load_model
from adadf_dist.files.outputs import add_overwrite_option, atomic_file, check_output_path
from adadf_dist.predict.inputs import Inputs, find_images
from adadf_dist.predict.output_formats import FORMATS, Columns, Format
from adadf_dist.predict.predictor import Predictor
from adadf_dist.predict.preprocess import LARGE, Aligner

logger = get_logger(__name__)

DESCRIPTION = """\
Predict the expression of faces. Class names and preprocessing come from MODEL, images are preprocessed as in the run's
evaluation, and everything is computed in fp32, so that all formats of a model agree. Rows are written in input order as
soon as they are available: path, prediction, confidence, a probability per class, and the error of an image that
failed. Samples of a dataset also have their true label (as named in the dataset) and their votes, if any.
"""
EPILOG = """\
MODEL    a run directory (its selected epoch), a checkpoint, or a .safetensors, .onnx or .pt2 file of adadf_dist.export
PATH     an image; a folder with its subfolders; a dataset folder (dataset.json; its test split, or --split);
         or - for one path per line on standard input, each predicted as it arrives

Images must be cropped like the training samples. Use --align for photos: it finds the largest face and aligns it to the
five-point template. With --all-faces, every face has a row with its number (1 is the largest) and its box in pixels of
the upright image. Requires pip install 'adadf_dist[align]'.

exit status: 0 if every row has a prediction; 1 if some have an error instead (a missing or unreadable path, an image
without a face; their number is printed to stderr); 2 for a command-line error

examples:
  python -m adadf_dist.predict runs/demo-seed0 faces/ --format csv --out predictions.csv
  python -m adadf_dist.predict rafdb.onnx party.jpg --align --all-faces
  find photos -name '*.jpg' | python -m adadf_dist.predict rafdb.safetensors - --format jsonl
"""


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("adadf_dist.predict", DESCRIPTION, EPILOG)
    parser.add_argument("model", type=Path, metavar="MODEL", help="model to use")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="images to classify; - reads paths from stdin")
    parser.add_argument(
        "--split", choices=("train", "validation", "test"), help="split to read from dataset folders (default: test)"
    )
    parser.add_argument("--align", action="store_true", help="find the largest face in each photo and align it")
    parser.add_argument("--all-faces", action="store_true", help="one row per face found; needs --align")
    parser.add_argument(
        "--aligned-size", type=int, default=100, metavar="N", help="side of an aligned face (default: %(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="default: %(default)s")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--num-workers", type=int, default=cores, metavar="N", help="image decoding threads (default: %(default)s)"
    )
    add_device_option(parser)
    parser.add_argument(
        "--format", choices=("csv", "jsonl", "table"), help="default: table on a terminal, csv otherwise"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write predictions to this file instead of stdout")
    add_overwrite_option(parser, "FILE")
    args = parser.parse_args(argv)
    for option, lowest, highest in (("batch_size", 1, 65536), ("num_workers", 1, 1024), ("aligned_size", 16, 1024)):
        if not lowest <= getattr(args, option) <= highest:
            parser.error(
                f"--{option.replace('_', '-')} {getattr(args, option)}: must be between {lowest} and {highest}"
            )
    if args.all_faces and not args.align:
        parser.error("--all-faces requires --align")
    if args.paths.count("-") > 1:
        parser.error("- (standard input) is listed twice")
    return args


@contextmanager
def open_output(path: Path | None) -> Iterator[TextIO]:
    """Open the output file, or standard output if `path` is None. Raises `UserError` if it cannot be written."""
    if path is None:
        if isinstance(sys.stdout, TextIOWrapper):
            # paths may contain bytes that are not text; piped output is UTF-8 in every locale
            encoding = sys.stdout.encoding if sys.stdout.isatty() else "utf-8"
            sys.stdout.reconfigure(encoding=encoding, errors="surrogateescape")
        yield sys.stdout
        return
    with (
        atomic_file(path) as partial,
        partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        yield file


class PredictionCounts:
    """Counts of rows, rows without a prediction, and images that look like photos."""

    def __init__(self) -> None:
        self.rows = self.failed = self.large = 0

    def messages(self) -> Iterator[str]:
        """Yield summary lines to print to stderr."""
        if self.failed:
            yield f"{self.failed:,} of {self.rows:,} rows have no prediction; see the error column"
        if self.large:
            yield (
                f"{self.large:,} images have more than {LARGE} pixels per side and were not cropped; use --align if "
                "they are photos"
            )


def predict(predictor: Predictor, inputs: Inputs, form: Format, out: TextIO) -> PredictionCounts:
    """Predict all images, write their rows batch by batch, and return the counts."""
    counts = PredictionCounts()
    out.write(form.head())
    with tqdm(total=inputs.total, unit="image", leave=False, disable=not sys.stderr.isatty()) as bar:
        for rows in predictor.predict(inputs.images):
            out.writelines(form.line(row) for row in rows)
            out.flush()
            counts.rows += len(rows)
            counts.failed += sum(row.probabilities is None for row in rows)
            counts.large += sum(row.face.is_large for row in rows)
            bar.update(sum(row.face.number in (None, 1) for row in rows))
    return counts


def make_predictor(args: argparse.Namespace, model: ExportedModel) -> Predictor:
    aligner = None
    if args.align:
        on_gpu = args.device != "cpu" and torch.cuda.is_available()
        aligner = Aligner(torch.device("cuda" if on_gpu else "cpu"), args.aligned_size, args.all_faces)
    return Predictor(model, args.batch_size, args.num_workers, aligner)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    with cli_errors("adadf_dist.predict", prints="data"):
        if args.out is not None:
            check_output_path(args.out, args.overwrite, "--out")
        inputs = find_images(args.paths, args.split)
        model = load_model(args.model, args.device)
        predictor = make_predictor(args, model)
        if args.out is None and sys.stdout is None:
            raise UserError("standard output is closed; pass --out FILE")
        first = next(inputs.images, None)  # read before an output file is created or replaced
        if first is None:
            raise UserError("no image paths on standard input")
        inputs = inputs._replace(images=chain([first], inputs.images))
        if inputs.skipped.kinds:
            logger.info(f"adadf_dist.predict: {inputs.skipped.describe()}")
        on_terminal = args.out is None and sys.stdout.isatty()
        columns = Columns(model.classes, inputs.label_classes, inputs.vote_classes, args.align, args.all_faces)
        form = FORMATS[args.format or ("table" if on_terminal else "csv")](columns)
        with open_output(args.out) as out:
            counts = predict(predictor, inputs, form, out)
    for line in counts.messages():
        logger.info(f"adadf_dist.predict: {line}")
    raise SystemExit(int(counts.failed > 0))


if __name__ == "__main__":
    main()
