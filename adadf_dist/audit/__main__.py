"""Find likely mislabeled training samples: `python -m adadf_dist.audit RUN`. See --help."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adadf_dist.audit.gallery import render
from adadf_dist.audit.ranking import AuditResult, score_labels, write_table
from adadf_dist.audit.run_data import load_audit_inputs
from adadf_dist.console.exit import cli_errors
from adadf_dist.console.logs import get_logger
from adadf_dist.console.parser import add_device_option, make_parser
from adadf_dist.data.identity import ALLOW_OTHER_DATA
from adadf_dist.distributed.environment import world_size_from_env
from adadf_dist.distributed.world import pick_device
from adadf_dist.errors import UserError
from adadf_dist.files.atomic import os_errors_as_user_errors, write_text
from adadf_dist.files.outputs import add_overwrite_option

logger = get_logger(__name__)

FOLDER = "audit"

DESCRIPTION = """\
Rank the training samples of a run by how likely they are mislabeled, from predictions of the trained network on the
training split and from the training dynamics. Writes to RUN/audit:

  audit.csv    every training sample, most likely mislabeled first: label, suggested label, label error score, attention
               and loss (mean and last), number of times it was forgotten, and auxiliary, target and fused
               distributions
  audit.html   gallery of the most likely mislabeled samples: keep, relabel or drop them and export relabel.csv, which
               `--data.relabel_file` of the trainer and `--relabel` of shards.build apply

If the run was trained with data.label_noise_rate or data.label_noise_file, both files also show the original
labels. An unfinished run is audited on its finished epochs.
"""
EPILOG = """\
examples:
  python -m adadf_dist.audit runs/rafdb-seed0
  python -m adadf_dist.audit runs/fer2013-seed0 --max-images 1000 --overwrite
"""


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("adadf_dist.audit", DESCRIPTION, EPILOG)
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory of adadf_dist.train")
    parser.add_argument(
        "--max-images", type=int, default=500, metavar="N", help="samples in audit.html (default: %(default)s)"
    )
    parser.add_argument(
        "--checkpoint",
        choices=("selected", "last"),
        default="selected",
        help="checkpoint to use (default: %(default)s)",
    )
    parser.add_argument(
        "--shards",
        default="",
        metavar="DIR",
        help="location of the run's dataset, if it moved",
    )
    parser.add_argument(
        "--cache-dir", default="", metavar="DIR", help="cache of remote shards (default: as in the run)"
    )
    add_device_option(parser)
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="compute precision (default: as in the run)")
    parser.add_argument(
        ALLOW_OTHER_DATA,
        action="store_true",
        help="audit even if the images differ from the run's training images (different dataset digest)",
    )
    parser.add_argument("--reference-labels", metavar="DIR", help=argparse.SUPPRESS)  # now of the benchmark
    add_overwrite_option(parser, "an audit of RUN")
    args = parser.parse_args(argv)
    if args.max_images < 1:
        parser.error(f"--max-images {args.max_images}: must be at least 1")
    return args


def audit(args: argparse.Namespace) -> None:
    """Score the labels, write the files and print a summary. Raises `UserError` if the run or dataset is unsuitable."""
    table, page = (args.run / FOLDER / name for name in ("audit.csv", "audit.html"))
    if not args.overwrite and (table.exists() or page.exists()):
        raise UserError(f"{table.parent}: audit already exists; pass --overwrite to replace it")
    if world_size_from_env() > 1:
        raise UserError("audit runs in a single process; do not launch it with torchrun")
    if args.reference_labels is not None:
        logger.info(
            "note: --reference-labels is ignored; to compare with reference labels, run "
            f"python -m benchmarks audit {args.run} --reference-labels {args.reference_labels}"
        )
    given = {"data.shards": args.shards, "data.cache_dir": args.cache_dir}
    moved = {key: value for key, value in given.items() if value}
    device = pick_device(args.device)
    with load_audit_inputs(args.run, args.checkpoint, moved, device, args.allow_other_data, args.precision) as inputs:
        result = score_labels(inputs)
        content = render(result, args.max_images)
        with os_errors_as_user_errors(table):  # keep other files, such as a saved relabel.csv
            table.parent.mkdir(exist_ok=True)
        write_table(table, result)
        write_text(page, content)
        print_summary(result)
        print(f"written: {table}, {page}")


def print_summary(result: AuditResult) -> None:
    inputs = result.material
    if inputs.other_data:
        print(f"warning: the run {inputs.other_data} ({ALLOW_OTHER_DATA})")
    if inputs.progress_note:
        print(inputs.progress_note)
    changed = int((result.suggested_label != inputs.labels).sum())
    print(
        f"{len(inputs.labels):,} training samples; the model disagrees with {changed:,} labels. Most likely mislabeled:"
    )
    for index in result.ranked[:5].tolist():
        label, proposed = inputs.classes[inputs.labels[index]], inputs.classes[result.suggested_label[index]]
        print(f"  {result.label_error_score[index]:.3f}  {inputs.split.keys[index]}  {label} -> {proposed}")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    with cli_errors("adadf_dist.audit"):
        audit(args)


if __name__ == "__main__":
    main()
