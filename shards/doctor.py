"""What is wrong with a dataset of faces, told before a GPU hour is spent on it.

    python -m shards.doctor DIR [--json FILE] [--html FILE]

DIR is a dataset folder or a raw tree that the builder can read. A line for each verdict goes to stdout, the worst last,
and the exit status says how bad it is (see --help). `--json FILE` writes the same for programs:

    schema_version  1
    path            DIR as given
    kind            "dataset folder" or "raw tree"
    source          the builder's source that made or reads it
    classes         names in label order
    splits          split -> {faces, class_counts}: faces that can be read, in all and in label order
    worst           "ok", "note", "warning" or "error"
    exit_status     0, 1 or 2
    verdicts        list of {check, severity, what, where, mend, groups}; the strings as printed
      groups        list of {faces, remark}: every face the verdict is about, copies of one picture together
        faces       list of {split, name, class}: name is the key in a dataset folder, the place in a raw tree;
                    class is null for a face that cannot be read
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from adadf_dist.data.writer import can_write, check_output
from adadf_dist.errors import one_line_errors
from shards.diagnosis.material import TREES
from shards.diagnosis.page import render
from shards.diagnosis.report import Report, diagnose

DESCRIPTION = """\
Examine a dataset of faces: which one it is, counts a split and class against the published ones, missing splits and
classes, image sizes and colours, files that do not decode or are not what they seem, blank faces, and faces that stand
there more than once: leaks between splits, twins within one, labels that disagree. Copies are found when they are equal
pixel for pixel, and when they were encoded again, resized, relit, cut by a column or mirrored. Nothing is changed.
"""
EPILOG = f"""\
DIR is a dataset folder (dataset.json), or a raw tree:
{chr(10).join(f"  {name:<11} {tree.looks_for}" for name, tree in TREES.items())}

exit status: 0 all is well, or notes only; 1 warnings; 2 errors, also when DIR cannot be examined

examples:
  python -m shards.doctor data/ferplus
  python -m shards.doctor FER2013 --json doctor.json --html doctor.html
"""


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m shards.doctor",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="dataset folder or root of a raw tree")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every verdict and face for programs")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page with the pictures in question")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=int, default=cores, metavar="N", help="processes (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.workers < 1:
        parser.error(f"--workers {args.workers}: at least 1")
    return args


def write(path: Path, text: str) -> None:
    with can_write(path):
        path.write_text(text, encoding="utf-8")


def summary(report: Report) -> str:
    """The verdicts, the worst last, where a terminal shows it."""
    lines = [str(verdict) for verdict in sorted(report.verdicts, key=lambda verdict: verdict.severity)]
    return "\n".join([*lines, f"{report.case.material.path}: {report.tally()}"])


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    with one_line_errors("shards.doctor", prints="report"):
        for option, path in (("--json", args.json), ("--html", args.html)):
            if path is not None:
                check_output(path, True, option)
        report = diagnose(args.folder, args.workers)
        if args.json is not None:
            write(args.json, report.to_json())
        if args.html is not None:
            write(args.html, render(report))
        print(summary(report))
    raise SystemExit(report.worst.exit_status)


if __name__ == "__main__":
    main()
