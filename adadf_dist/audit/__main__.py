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
from adadf_dist.console.parser import Parser
from adadf_dist.data.identity import ALLOW_OTHER_DATA
from adadf_dist.distributed.world import pick_device, world_size_from_env
from adadf_dist.errors import UserError
from adadf_dist.files.atomic import os_errors_as_user_errors, write_text
from adadf_dist.files.outputs import add_force_option

FOLDER = "audit"

DESCRIPTION = """\
Rank the training samples of a run by how likely they are mislabeled, from predictions of the trained network on the
training split and from the training dynamics. Writes to RUN/audit:

  audit.csv    every training sample, most likely mislabeled first: label, proposed label, suspicion (label error
               score), attention and loss (mean and last), how often it was forgotten, auxiliary, target and fused
               distribution
  audit.html   gallery of the most likely mislabeled samples: keep, relabel or drop them and export relabel.csv, which
               `--data.relabel_file` of the trainer and `--relabel` of shards.build apply

If the run was trained with data.label_noise_rate or data.label_noise_file, both files show the labels before it. An
unfinished run is audited on its epochs so far.
"""
EPILOG = """\
examples:
  python -m adadf_dist.audit runs/rafdb-seed0
  python -m adadf_dist.audit runs/fer2013-seed0 --gallery 1000 --force
"""


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m adadf_dist.audit",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory of adadf_dist.train")
    parser.add_argument(
        "--gallery", type=int, default=500, metavar="N", help="samples in audit.html (default: %(default)s)"
    )
    parser.add_argument(
        "--checkpoint",
        choices=("selected", "last"),
        default="selected",
        help="checkpoint to use (default: %(default)s)",
    )
    parser.add_argument(
        "--data.shards",
        "--shards",
        dest="shards",
        default="",
        metavar="DIR",
        help="the run's dataset, if it moved",
    )
    parser.add_argument(
        ALLOW_OTHER_DATA,
        action="store_true",
        help="audit even if the images differ from the run's training images (different dataset digest)",
    )
    parser.add_argument("--true-labels", metavar="DIR", help=argparse.SUPPRESS)  # now of the benchmark
    add_force_option(parser, "an audit of RUN")
    args = parser.parse_args(argv)
    if args.gallery < 1:
        parser.error(f"--gallery {args.gallery}: must be at least 1")
    return args


def audit(args: argparse.Namespace) -> None:
    """Score the labels, write the files and print a summary. Raises `UserError`."""
    table, page = (args.run / FOLDER / name for name in ("audit.csv", "audit.html"))
    if not args.force and (table.exists() or page.exists()):
        raise UserError(f"{table.parent}: audit already exists; pass --force to replace it")
    if world_size_from_env() > 1:
        raise UserError("audit runs in a single process; do not launch it with torchrun")
    if args.true_labels is not None:
        print(
            "note: --true-labels is not used by the audit; the comparison with reference labels is now "
            f"python -m benchmarks audit {args.run} --true-labels {args.true_labels}",
            file=sys.stderr,
        )
    with load_audit_inputs(args.run, args.checkpoint, args.shards, pick_device(), args.allow_other_data) as inputs:
        result = score_labels(inputs)
        content = render(result, args.gallery)
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
    changed = int((result.proposed != inputs.labels).sum())
    print(
        f"{len(inputs.labels):,} training samples; the model disagrees with {changed:,} labels. Most likely mislabeled:"
    )
    for index in result.ranked[:5].tolist():
        label, proposed = inputs.classes[inputs.labels[index]], inputs.classes[result.proposed[index]]
        print(f"  {result.suspicion[index]:.3f}  {inputs.split.keys[index]}  {label} -> {proposed}")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    with cli_errors("adadf_dist.audit"):
        audit(args)


if __name__ == "__main__":
    main()
