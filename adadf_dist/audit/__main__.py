"""Find training faces that are likely to be mislabelled: `python -m adadf_dist.audit RUN`. See --help."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adadf_dist.audit.gallery import render
from adadf_dist.audit.ranking import AuditResult, score_labels, write_table
from adadf_dist.audit.reference_labels import ReferenceLabels, injected_noise, labels_from_dataset
from adadf_dist.audit.run_data import AuditInputs, load_audit_inputs
from adadf_dist.audit.score_comparison import ScoreReport, score
from adadf_dist.console.exit import cli_errors
from adadf_dist.console.parser import Parser
from adadf_dist.data.identity import ALLOW_OTHER_DATA
from adadf_dist.distributed.world import pick_device, world_size_from_env
from adadf_dist.errors import UserError
from adadf_dist.files.atomic import write_json, write_text
from adadf_dist.files.outputs import add_force_option, os_errors_as_user_errors

FOLDER = "audit"

DESCRIPTION = """\
Rank the training faces of a run by how suspicious their labels are, from what the run has learned of them: one pass of
the trained network over the training split as it was trained on, and the history of its epochs. RUN/audit gets:

  audit.csv    every training face, the most suspicious first: label, proposed label, suspicion, attention and loss over
               the epochs and in the last, how often it was forgotten, auxiliary, target and fused distribution
  audit.html   the most suspicious faces to leaf through; keep, relabel or drop them and export relabel.csv, which
               `--data.relabel` of the trainer and `--relabel` of shards.build carry out
  scores.json  how well this and other scores find labels that are known to be wrong, where any are

Labels are known to be wrong where the run was trained with data.label_noise or data.label_noise_file, and where
--true-labels gives another labelling of the same photos (FER+'s for FER2013's). A run that is not over is judged by
the epochs that there are.
"""
EPILOG = """\
examples:
  python -m adadf_dist.audit runs/rafdb-seed0
  python -m adadf_dist.audit runs/fer2013-seed0 --true-labels data/ferplus --gallery 1000 --force
"""


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m adadf_dist.audit",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder of adadf_dist.train")
    parser.add_argument(
        "--gallery", type=int, default=500, metavar="N", help="faces in audit.html (default: %(default)s)"
    )
    parser.add_argument(
        "--checkpoint",
        choices=("selected", "last"),
        default="selected",
        help="whose answers are taken (default: %(default)s)",
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
        help="audit although the images are not those that the run was trained on (the dataset's digest differs)",
    )
    parser.add_argument(
        "--true-labels",
        type=Path,
        metavar="DIR",
        help="dataset with other labels of the same photos, taken for true",
    )
    add_force_option(parser, "an audit of RUN")
    args = parser.parse_args(argv)
    if args.gallery < 1:
        parser.error(f"--gallery {args.gallery}: at least 1")
    return args


def audit(args: argparse.Namespace) -> None:
    """Judge, write, tell. Raises `UserError`."""
    table, page, scores = (args.run / FOLDER / name for name in ("audit.csv", "audit.html", "scores.json"))
    if not args.force and any(file.exists() for file in (table, page, scores)):
        raise UserError(f"{table.parent}: holds an audit already; add --force to replace it")
    if world_size_from_env() > 1:
        raise UserError("an audit is the work of one process: start it without torchrun")
    with load_audit_inputs(args.run, args.checkpoint, args.shards, pick_device(), args.allow_other_data) as material:
        truths = find_reference_labels(args, material)
        findings = score_labels(material, truths[0] if truths else None)
        scorecards = [score(findings, truth) for truth in truths]
        content = render(findings, args.gallery)
        with os_errors_as_user_errors(table):  # file by file: a relabel.csv may have been saved beside them
            table.parent.mkdir(exist_ok=True)
        write_table(table, findings)
        write_text(page, content)
        if scorecards:
            write_json(scores, [card.to_dict() for card in scorecards])
        else:
            scores.unlink(missing_ok=True)
        print_summary(findings, scorecards)
        print(f"written: {table}, {page}" + (f", {scores}" if scorecards else ""))


def find_reference_labels(args: argparse.Namespace, material: AuditInputs) -> list[ReferenceLabels]:
    """What is known of true labels: by --true-labels, by noise that was put in on purpose."""
    truths = []
    if args.true_labels is not None:
        truths.append(labels_from_dataset(material.split, args.true_labels))
    noise = injected_noise(material.faces, material.trained.config.data)
    return truths if noise is None else [*truths, noise]


def print_summary(findings: AuditResult, scorecards: Sequence[ScoreReport]) -> None:
    for card in scorecards:
        print(card.to_markdown(), end="\n\n")
    material = findings.material
    if material.other_data:
        print(f"warning: the run {material.other_data} ({ALLOW_OTHER_DATA})")
    if material.under_way:
        print(material.under_way)
    doubted = int((findings.proposed != material.labels).sum())
    print(
        f"{len(material.labels):,} training faces, {doubted:,} of which the network labels otherwise; most suspicious:"
    )
    for face in findings.ranked[:5].tolist():
        label, proposed = material.classes[material.labels[face]], material.classes[findings.proposed[face]]
        print(f"  {findings.suspicion[face]:.3f}  {material.split.keys[face]}  {label} -> {proposed}")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(sys.argv[1:] if argv is None else argv)
    with cli_errors("adadf_dist.audit"):
        audit(args)


if __name__ == "__main__":
    main()
