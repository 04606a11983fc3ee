"""Command line of the report: writes an HTML page about one or more runs, and figures for papers.

python -m adadf_dist.report RUN [RUN ...] [--out FILE] [--figures DIR] [--sample KEY]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adadf_dist.console.exit import cli_errors
from adadf_dist.console.parser import make_parser
from adadf_dist.data.identity import ALLOW_OTHER_DATA
from adadf_dist.files.outputs import add_overwrite_option, check_output_folder, check_output_path
from adadf_dist.report.api import PAGE, report

COMPARISON = "comparison.html"
"""Default file name of a report on several runs, written to the current folder."""

DESCRIPTION = f"""\
Write a self-contained HTML page about a run, finished or in progress: result, curves, confusion, class distributions,
thresholds, attention, features, an ambiguous sample, most and least confident samples, and diagnostics. Given several
runs, the page describes the first and compares them all. Training writes {PAGE} into the run folder when it ends;
a report on several runs never replaces it.
"""
EPILOG = """\
examples:
  python -m adadf_dist.report runs/rafdb-seed0
  python -m adadf_dist.report runs/rafdb-seed0 runs/one_hot-seed0 --out compared.html --figures figures
"""


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("adadf_dist.report", DESCRIPTION, EPILOG)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder written by training")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=f"output page (default: {PAGE} in the run folder; for several runs {COMPARISON} in the current folder)",
    )
    parser.add_argument("--figures", type=Path, metavar="DIR", help="also write each figure as PNG (300 dpi) and SVG")
    parser.add_argument("--sample", default="", metavar="KEY", help="tracked sample to show (default: most ambiguous)")
    parser.add_argument("--shards", default="", metavar="DIR", help="location of the first run's dataset, if it moved")
    parser.add_argument(
        ALLOW_OTHER_DATA,
        action="store_true",
        help="show images and compare runs even if a dataset has changed (different digest)",
    )
    add_overwrite_option(parser, "the page or a figure")
    return parser.parse_args(argv)


def output_path(args: argparse.Namespace) -> Path:
    """Return the path of the page to write.

    Raises `UserError` if the file exists, unless it is the run's own report or `--overwrite` is set.
    """
    own: Path = args.runs[0] / PAGE
    if len(args.runs) == 1 and (args.out is None or args.out.resolve() == own.resolve()):
        return own
    out: Path = args.out or Path(COMPARISON)
    check_output_path(out, args.overwrite, "--out")
    return out


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    with cli_errors("adadf_dist.report"):
        page = output_path(args)
        if args.figures is not None:
            check_output_folder(args.figures, args.overwrite, "--figures")
        report(args.runs, page, args.sample, args.figures, args.shards, args.allow_other_data)
        print(f"report: {page}")


if __name__ == "__main__":
    main()
