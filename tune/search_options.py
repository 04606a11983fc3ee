"""Parse and validate the command line of a search before anything starts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from adadf_dist.config.load import override, parse_cli
from adadf_dist.config.schema import Config
from adadf_dist.console.parser import Parser
from adadf_dist.errors import UserError
from tune.runners.local import add_arguments
from tune.setup import check_protocol, make_paths_absolute, study_name
from tune.study.asha import plan_halving
from tune.study.space import SPACES, Space, open_space
from tune.study.study import SearchOptions, Study

DEFAULT_TRIALS = 16
HELP = """\
Train many configurations on one seed, retrain the best ones and the default on held-out seeds, and compare each with
the default, paired by seed and sample. Only the winner is evaluated on the test split, once, at the end. With
--num-trials 0, train one configuration on --num-seeds seeds and print the mean.

  python -m tune.search --preset demo --num-trials 8 --local
  python -m tune.search --preset affectnet7 --data.shards DIR --space paper --num-trials 64 --num-seeds 5 --address auto

Every other --key VALUE is a training option (python -m adadf_dist.train --help) and defines the default configuration.
"""


def make_parser() -> Parser:
    parser = Parser(prog="python -m tune.search", description=HELP)
    spaces = ", ".join(SPACES)
    parser.add_argument(
        "--space", default="paper", help=f"search space: {spaces}, or a TOML file (default: %(default)s)"
    )
    parser.add_argument(
        "--num-trials",
        type=int,
        help=f"trials besides the default; 0: train only the default (default: {DEFAULT_TRIALS}, or all grid points)",
    )
    parser.add_argument("--num-seeds", type=int, default=3, help="held-out seeds per finalist (default: %(default)s)")
    parser.add_argument("--finalists", type=int, default=3, help="configurations to retrain (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="study directory (default: runs/search-PRESET-SPACE)")
    parser.add_argument("--resume", action="store_true", help="resume the search in --out")
    parser.add_argument(
        "--searcher", choices=["random", "tpe"], default="random", help="sampling method; tpe needs Optuna and Ray"
    )
    parser.add_argument("--scheduler", choices=["asha", "none"], default="asha", help="asha stops poor trials early")
    parser.add_argument(
        "--grace-period",
        type=int,
        help="epochs that every trial completes before it may be stopped (default: 2 x largest loss.epoch_threshold)",
    )
    parser.add_argument(
        "--reduction-factor",
        type=int,
        default=3,
        help="N: at each rung, the best 1 in N trials continue (default: %(default)s)",
    )
    parser.add_argument(
        "--keep-checkpoints",
        choices=["winner", "all"],
        default="winner",
        help="finished trials whose checkpoints are kept (default: winner)",
    )
    add_arguments(parser)
    return parser


def plan(argv: Sequence[str]) -> tuple[Study, argparse.Namespace]:
    """Return the study and the parsed command-line options. Raises `UserError` if the command line is invalid."""
    parser = make_parser()
    options, words = parser.parse_known_args(argv)
    base = parse_cli(words, parser.option_names())
    space = open_space(options.space, base)
    for key, least in (("num-trials", 0), ("num-seeds", 2), ("finalists", 1)):
        value = getattr(options, key.replace("-", "_"))
        if value is not None and value < least:
            raise UserError(f"--{key} {value}: must be at least {least}")
    trials = checked_trials(space, options)
    if options.searcher == "random":
        check_samples(space, base, trials)
    if options.searcher == "tpe" and options.local:
        raise UserError("--searcher tpe needs Ray Tune, which --local disables; remove one of these options")
    check_protocol(base)
    asha = options.scheduler == "asha"
    chosen = SearchOptions(
        seeds=options.num_seeds,
        trials=trials,
        finalists=options.finalists,
        searcher=options.searcher,
        keep=options.keep_checkpoints,
        halving=plan_halving(space, base, options.grace_period, options.reduction_factor) if asha else None,
    )
    folder = options.out or Path("runs") / f"search-{study_name(base)}-{Path(options.space).stem}"
    return Study(folder.absolute(), make_paths_absolute(base), space, chosen), options


def check_samples(space: Space, base: Config, trials: int) -> None:
    """Raise `UserError` if any trial would combine values that are valid individually but not together."""
    for number in range(1, trials + 1):
        values = space.sample(base.seed, number)
        try:
            override(base, values)
        except UserError as error:
            raise UserError(f"space {space.name}: trial {number} would combine {values}: {error}") from None


def checked_trials(space: Space, options: argparse.Namespace) -> int:
    """Return the requested number of trials; by default, the number of points if the space has only grids.

    Raises `UserError` if the space has fewer points, or a grid that the searcher cannot use.
    """
    grids = [key for key, domain in space.domains.items() if domain.kind == "grid"]
    if options.searcher == "tpe" and grids:
        raise UserError(
            f"space {space.name}: {grids[0]} is a grid, which --searcher tpe cannot sample; use choice instead"
        )
    if space.points is None or options.num_trials == 0:
        return DEFAULT_TRIALS if options.num_trials is None else int(options.num_trials)
    if options.num_trials is not None and options.num_trials > space.points:
        raise UserError(
            f"--num-trials {options.num_trials}: space {space.name} has only {space.points} grid points; "
            "lower --num-trials"
        )
    return space.points if options.num_trials is None else int(options.num_trials)
