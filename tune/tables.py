"""Reproduce the paper's tables on your dataset, with several seeds and confidence intervals. See --help."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from adadf_dist.config.load import parse_cli, parse_overrides
from adadf_dist.config.schema import Config
from adadf_dist.console.exit import cli_errors
from adadf_dist.console.parser import Parser
from adadf_dist.errors import UserError
from tune.paper.grids import GRIDS, config_id, configurations, rows_of
from tune.paper.table_files import table_of, write_table
from tune.report.progress import ProgressReporter
from tune.runners.local import Runner, add_arguments
from tune.setup import check_protocol, make_paths_absolute, open_study, study_name
from tune.study.space import Domain, Space
from tune.study.study import STUDY_FILE, SearchOptions, Study
from tune.study.trial import Trial

HELP = """\
Reproduce tables of the paper as grids of runs, all on the same seeds, each evaluated once on test at its end:

  lambda_min, threshold, epoch_threshold   Table 1: one constant varied, the others from the preset
  ablation                                 Table 2: single label, label, class, or fused distributions
  backbone                                 Table 3: ResNet18 and ResNet50
  noise                                    Table 4: 0 to 30% label noise, compared with training on single labels

  python -m tune.tables lambda_min ablation --preset rafdb --data.shards DIR --num-seeds 5 --address auto

A run that appears in several tables is trained once. Rerun the same command to resume; add tables or seeds to
extend the results. Every other --key VALUE is a training option (python -m adadf_dist.train --help).
"""


def make_parser() -> Parser:
    usage = "python -m tune.tables TABLE [TABLE ...] [options] [--preset NAME] [--key VALUE ...]"
    parser = Parser(prog="python -m tune.tables", usage=usage, description=HELP)
    parser.add_argument("tables", nargs="+", metavar="TABLE", choices=list(GRIDS), help=", ".join(GRIDS))
    parser.add_argument("--num-seeds", type=int, default=3, help="seeds per row (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="directory of runs and tables (default: runs/tables-PRESET)")
    parser.add_argument(
        "--keep-checkpoints",
        choices=["none", "all"],
        default="none",
        help="finished runs whose checkpoints are kept (default: none)",
    )
    add_arguments(parser)
    return parser


def plan(argv: Sequence[str]) -> tuple[Study, argparse.Namespace, str]:
    """Return the study, the parsed command-line options and the preset's name.

    Raises `UserError` if the command line is invalid.
    """
    parser = make_parser()
    options, words = parser.parse_known_args(argv)
    base = parse_cli(words, parser.option_names())
    preset = parse_overrides(words).get("preset", "")
    if options.num_seeds < 2:
        raise UserError(
            f"--num-seeds {options.num_seeds}: must be at least 2; one run per row does not show how much results vary"
        )
    check_protocol(base)
    if "backbone" in options.tables and base.model.pretrained not in ("", "imagenet"):
        raise UserError(
            f"model.pretrained: {base.model.pretrained} contains weights of one backbone, but the table `backbone` "
            "trains two; set model.pretrained = imagenet or remove it"
        )
    folder = options.out or Path("runs") / f"tables-{study_name(base)}"
    chosen = SearchOptions(options.num_seeds, keep=options.keep_checkpoints)
    return Study(folder.absolute(), make_paths_absolute(base), space_of(base), chosen), options, preset


def space_of(base: Config) -> Space:
    """Return a space with every key that any table changes; these keys become columns of trials.csv."""
    changed = configurations(base)
    keys = list(dict.fromkeys(key for values in changed for key in values))
    return Space("tables", {key: Domain("grid", tuple(v[key] for v in changed if key in v)) for key in keys})


def trials_of(study: Study, tables: Sequence[str]) -> list[Trial]:
    """Return one trial per configuration and seed, ordered so that all rows finish one seed before the next."""
    numbers = dict.fromkeys(config_id(study.base, row) for name in tables for row in rows_of(study.base, name))
    known = configurations(study.base)
    seeds = range(study.base.seed, study.base.seed + study.options.seeds)
    return [Trial(number, seed, "final", known[number], test=True) for seed in seeds for number in sorted(numbers)]


def make_tables(study: Study, names: Sequence[str], preset: str, runner: Runner) -> None:
    """Run or resume the study, then write and print its tables, in which failed runs are listed."""
    trials = trials_of(study, names)
    text = ProgressReporter(study, len(trials))
    runner.run(study, trials, text)
    text()  # also when there was nothing left to run
    for name in names:
        print("\n" + write_table(study.folder, table_of(study, name, preset, study.trials.outcomes())))


def main(argv: Sequence[str] | None = None) -> None:
    with cli_errors("tune.tables"):
        study, options, preset = plan(sys.argv[1:] if argv is None else argv)
        resume = (study.folder / STUDY_FILE).exists()
        with open_study(study, resume, options) as runner:
            make_tables(study, options.tables, preset, runner)


if __name__ == "__main__":
    main()
