"""Check a dataset for problems before training on it.

    python -m shards.doctor PATH [--json FILE] [--html FILE]

PATH is a dataset folder, an original dataset folder or a CSV list that the builder can read. Prints one line per
finding to stdout, with the most severe ones last, and exits with a status that depends on the highest severity (see
--help). `--json FILE` writes the results as JSON:

    format          2
    path            PATH as given
    kind            "dataset folder", or "original dataset" for an original dataset folder or a CSV list
    source          name of the `shards.build` source that built or can read the data
    classes         names in label order
    splits          split -> {faces, class_counts}: number of readable images, and number per class in label order
    worst           highest severity: "ok", "info", "warning" or "error"
    exit_status     0, 1 or 2
    findings        list of {check, severity, message, location, hint, groups}; strings are as printed
      groups        list of {faces, note}: the images that the finding is about; copies of one image form a group
        faces       list of {split, name, class}: name is the key in a dataset folder, otherwise the path or CSV
                    row; class is null for an unreadable image
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from adadf_dist.console.exit import cli_errors
from adadf_dist.console.parser import make_parser
from adadf_dist.files.outputs import add_overwrite_option, check_output_path, write_output
from adadf_dist.findings import summarize_severities
from shards.doctor.dataset_view import TREES, DatasetView, open_dataset_view, open_tree
from shards.doctor.finding import format_finding
from shards.doctor.html_report import render
from shards.doctor.report import Report, diagnose
from shards.sources import csv_list as listing

DESCRIPTION = """\
Check a dataset of faces: identify the release, compare counts per split and class with the published ones, and report
missing splits and classes, image sizes and colors, files that fail to decode or have wrong types, blank images, and
duplicates: leaks between splits, duplicates within a split, and conflicting labels. Detects copies that are identical,
re-encoded, resized, changed in brightness or contrast, cropped by a column or mirrored. Does not modify the dataset.
"""
EPILOG = f"""\
PATH is a dataset folder (dataset.json), a CSV list with the options of `shards.build csv`, or an original dataset
folder with one of these contents:
{chr(10).join(f"  {name:<11} {tree.markers}" for name, tree in TREES.items())}

exit status: 0 OK or info only; 1 warnings; 2 errors, or PATH cannot be read

examples:
  python -m shards.doctor data/ferplus
  python -m shards.doctor FER2013 --json doctor.json --html doctor.html
  python -m shards.doctor faces.csv --root pictures --classes neutral,happy,sad
"""


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("shards.doctor", DESCRIPTION, EPILOG)
    parser.add_argument(
        "folder", type=Path, metavar="PATH", help="dataset folder, original dataset folder, or CSV list"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all findings and affected samples as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write an HTML page with the affected images")
    add_overwrite_option(parser, "an output FILE")
    listing.add_arguments(parser.add_argument_group("csv list, as in `shards.build csv`"), csv_option=False)
    parser.set_defaults(seed=0)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--num-workers", type=int, default=cores, metavar="N", help="processes (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.num_workers < 1:
        parser.error(f"--num-workers {args.num_workers}: must be at least 1")
    return args


def open_path(args: argparse.Namespace) -> DatasetView:
    """Open a folder, or a CSV list as accepted by `shards.build csv`. Raises `UserError` if it cannot be opened."""
    if not args.folder.is_file():
        return open_dataset_view(args.folder)
    args.csv, args.keep_leaks = args.folder, True  # leaks are findings here
    source = listing.open_source(args)
    return replace(open_tree(args.root, "csv", source), path=args.folder)


def summary(report: Report) -> str:
    """Return one line per finding, with the most severe ones last, so that they stay visible in a terminal."""
    lines = [format_finding(finding) for finding in sorted(report.findings, key=lambda finding: finding.severity)]
    return "\n".join([*lines, f"{report.context.view.path}: {summarize_severities(report.findings)}"])


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    with cli_errors("shards.doctor", prints="report"):
        for option, path in (("--json", args.json), ("--html", args.html)):
            if path is not None:
                check_output_path(path, args.overwrite, option)
        report = diagnose(open_path(args), args.num_workers)
        if args.json is not None:
            write_output(args.json, report.to_json())
        if args.html is not None:
            write_output(args.html, render(report))
        print(summary(report))
    raise SystemExit(report.worst.exit_status)


if __name__ == "__main__":
    main()
