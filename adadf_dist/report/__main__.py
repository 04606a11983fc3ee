"""A report of one run or of several, finished or in progress: a page, and its figures for a paper.

python -m adadf_dist.report RUN [RUN ...] [--out FILE] [--figures DIR] [--face KEY]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adadf_dist.console import Parser
from adadf_dist.data.writer import check_output
from adadf_dist.errors import UserError, one_line_errors
from adadf_dist.report.writing import PAGE, report

DESCRIPTION = f"""\
One self-contained page about a run: result, curves, confusion, class distributions, thresholds, attention, features,
an ambiguous face, most and least certain faces, and what was wrong on the way. Of several runs the first is told in
full, and all are compared. Training itself writes {PAGE} into the run folder when it ends.
"""
EPILOG = """\
examples:
  python -m adadf_dist.report runs/rafdb-seed0
  python -m adadf_dist.report runs/rafdb-seed0 runs/one_hot-seed0 --out compared.html --figures figures
"""


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m adadf_dist.report",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder, as training wrote it")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"the page (default: {PAGE} in the first run folder)")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="write each figure as PNG (300 dpi) and SVG too")
    parser.add_argument("--face", default="", metavar="KEY", help="training face to show (default: the most ambiguous)")
    parser.add_argument("--force", action="store_true", help="replace --out and figures where they exist")
    return parser.parse_args(argv)


def page_of(args: argparse.Namespace) -> Path:
    """Where the page goes. Raises `UserError` for a file that may be somebody's."""
    own: Path = args.runs[0] / PAGE
    if args.out is None or args.out.resolve() == own.resolve():
        return own
    out: Path = args.out
    check_output(out, args.force, "--out")
    return out


def check_figures(folder: Path | None, force: bool) -> None:
    """Raises `UserError` for a folder whose figures may be somebody's, and for what is no folder."""
    if folder is None or not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"--figures {folder}: is a file; give a folder for the figures")
    if any(folder.iterdir()) and not force:
        raise UserError(f"--figures {folder}: is not empty; give another folder, or --force to replace what is there")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    with one_line_errors("adadf_dist.report"):
        page = page_of(args)
        check_figures(args.figures, args.force)
        report(args.runs, page, args.face, args.figures)
        print(f"report: {page}")


if __name__ == "__main__":
    main()
