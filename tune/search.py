"""Search the constants of a run, and say whether what was found is more than noise. See --help."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from adadf_dist.comparison import mean_interval
from adadf_dist.config import Config
from adadf_dist.errors import UserError, one_line_errors
from adadf_dist.runtime.folder import sole_writer
from adadf_dist.settings import config_from_command_line, override
from tune.choice import Choice, choose, finalists
from tune.halving import plan_halving
from tune.nodes import check_shards, on_any_node
from tune.page import write_page
from tune.results import describe, write_best
from tune.runners import Runner, add_arguments, runner_of
from tune.space import SPACES, Space, Values, open_space
from tune.standing import Standing
from tune.study import Options, Study, begin
from tune.trial import DEFAULT, Outcome, Trial

DEFAULT_TRIALS = 16
HELP = """\
Many configurations on one seed, the best of them and the default on fresh seeds, compared pair by pair. The test split
is not read; the winner alone is tested, once, at the end. With --trials 0, K seeds of one configuration and their mean.

  python -m tune.search --preset demo --trials 8 --local
  python -m tune.search --preset affectnet7 --data.shards DIR --space paper --trials 64 --seeds 5 --address auto

Every other --key VALUE is a key of the runs (python -m adadf_dist.train --help) and makes the default configuration.
"""


def make_parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="python -m tune.search", description=HELP, formatter_class=formatter
    )
    spaces = ", ".join(SPACES)
    parser.add_argument("--space", default="paper", help=f"{spaces}, or a TOML file (default: %(default)s)")
    parser.add_argument(
        "--trials",
        type=int,
        help=f"beside the default; 0: the default's seeds alone (default: {DEFAULT_TRIALS}, or all points of grids)",
    )
    parser.add_argument("--seeds", type=int, default=3, help="fresh seeds of each finalist (default: %(default)s)")
    parser.add_argument("--finalists", type=int, default=3, help="configurations that get them (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the search (default: runs/search-PRESET-SPACE)")
    parser.add_argument("--resume", action="store_true", help="go on with the search in --out")
    parser.add_argument(
        "--searcher", choices=["random", "tpe"], default="random", help="tpe is Optuna's, and needs Ray"
    )
    parser.add_argument("--scheduler", choices=["asha", "none"], default="asha", help="end poor trials early, or none")
    parser.add_argument("--grace", type=int, help="epochs that every trial has (default: twice the largest E)")
    parser.add_argument("--factor", type=int, default=3, help="one in so many passes a rung (default: %(default)s)")
    parser.add_argument(
        "--keep-checkpoints", choices=["winner", "all"], default="winner", help="of trials that ended (default: winner)"
    )
    add_arguments(parser)
    return parser


def plan(argv: Sequence[str]) -> tuple[Study, argparse.Namespace]:
    """What the command line asks for, checked before anything starts."""
    options, words = make_parser().parse_known_args(argv)
    base = config_from_command_line(words)
    name = Path(base.out).name.rpartition("-seed")[0]
    space = open_space(options.space, base)
    for key, least in (("trials", 0), ("seeds", 2), ("finalists", 1)):
        if getattr(options, key) is not None and getattr(options, key) < least:
            raise UserError(f"--{key} {getattr(options, key)}: give {least} or more")
    trials = checked_trials(space, options)
    if options.searcher == "random":
        check_draws(space, base, trials)
    if options.searcher == "tpe" and options.local:
        raise UserError("--searcher tpe: Optuna draws through Ray Tune, which --local leaves out; give one of the two")
    if base.evaluation.protocol == "published":
        raise UserError(
            "evaluation.protocol is published, which looks at the test split every epoch: a search would choose by it; "
            "set evaluation.protocol = clean"
        )
    asha = options.scheduler == "asha"
    chosen = Options(
        seeds=options.seeds,
        trials=trials,
        finalists=options.finalists,
        searcher=options.searcher,
        keep=options.keep_checkpoints,
        halving=plan_halving(space, base, options.grace, options.factor) if asha else None,
    )
    folder = options.out or Path("runs") / f"search-{name}-{Path(options.space).stem}"
    return Study(folder.absolute(), on_any_node(base), space, chosen), options


def check_draws(space: Space, base: Config, trials: int) -> None:
    """Values that are right one by one may not go together. Raises `UserError`."""
    for number in range(1, trials + 1):
        values = space.sample(base.seed, number)
        try:
            override(base, values)
        except UserError as error:
            raise UserError(f"space {space.name}: trial {number} would have {values}: {error}") from None


def checked_trials(space: Space, options: argparse.Namespace) -> int:
    """How many, which for grids is settled. Raises `UserError`."""
    grids = [key for key, domain in space.domains.items() if domain.kind == "grid"]
    if options.searcher == "tpe" and grids:
        raise UserError(
            f"space {space.name}: {grids[0]} is a grid, to be gone through; --searcher tpe draws: give choice"
        )
    if space.points is None or options.trials == 0:
        return DEFAULT_TRIALS if options.trials is None else int(options.trials)
    if options.trials is not None and options.trials > space.points:
        raise UserError(f"--trials {options.trials}: the grids of space {space.name} have {space.points} points")
    return space.points if options.trials is None else int(options.trials)


def repeat(study: Study, runner: Runner) -> None:
    """The default alone, on every final seed. Nothing is chosen, so each run is tested at its end."""
    runs = [replace(trial, test=True) for trial in study.finals({DEFAULT: {}})]
    told = Standing(study, len(runs))
    runner.run(study, runs, told)
    told()
    outcomes = [study.trials.outcome(trial) for trial in runs]
    accuracies_of(outcomes, study)  # or it says which seed failed
    for name, values in (("validation", [o.best for o in outcomes]), ("test", [o.test for o in outcomes])):
        known = [value for value in values if value is not None]  # a dataset may lack a test split
        if known:
            low, high = mean_interval(known)
            print(f"{name} accuracy: {fmean(known):.2%} on {len(known)} seeds (95 % interval {low:.2%} to {high:.2%})")


def search(study: Study, runner: Runner) -> Choice:
    """From where the study stands to its answer. Raises `UserError` when too little was left to choose from."""
    options = study.options
    most = 1 + options.trials + options.seeds * (1 + min(options.finalists, options.trials))
    told = Standing(study, most)
    print(describe_plan(study))
    runner.search(study, told)
    told()  # where there was nothing left to run, too
    values = chosen_by_search(study)
    draw(study, None)
    told.settle()
    finals = study.finals(values)
    runner.run(study, finals, told)
    choice = choose(accuracies_of([study.trials.outcome(trial) for trial in finals], study))
    print("\n".join(describe(choice)))
    told.settle()
    winner = values[choice.winner]
    best_file = write_best(study, choice, winner)
    tested = replace(study.finals({choice.winner: winner})[0], test=True)  # the test split is read here alone
    runner.run(study, [tested], told)
    draw(study, choice)
    print(describe_test(study, tested))
    if options.keep != "all":
        for trial in finals:
            if trial.seed != tested.seed:  # a search that grows may find another winner, to be tested by this seed's
                study.trials.drop_checkpoints(trial)
    print(f"python -m adadf_dist.train --config {best_file}")
    return choice


def describe_plan(study: Study) -> str:
    options, halving = study.options, study.options.halving
    line = (
        f"{options.trials} configurations and the default on seed {study.base.seed}, then the best {options.finalists} "
    )
    line += f"and the default on {options.seeds} other seeds; {study.folder}\n"
    if halving is None:
        return line + "every trial goes to its end"
    if not halving.rungs:
        return (
            line
            + f"no trial is ended early: a grace of {halving.grace} epochs is no less than the run's {halving.epochs}"
        )
    return line + f"poor trials end at epoch {', '.join(map(str, halving.rungs))} of {halving.epochs}"


def describe_test(study: Study, tested: Trial) -> str:
    outcome = study.trials.outcome(tested)
    if outcome.end != "finished":
        raise UserError(f"{tested.name}: was not tested ({outcome.error or 'interrupted'}); --resume goes on")
    if outcome.test is None:
        return "the dataset has no test split: the winner was not tested"
    line = f"test accuracy of seed {tested.seed}: {outcome.test:.2%}"
    others = [o.trial.name for o in study.trials.outcomes() if o.trial.test and o.trial.name != tested.name]
    if others:
        line += f"\nwarning: the test split has been read before, by {', '.join(others)}: it is no longer quite unseen"
    return line


def chosen_by_search(study: Study) -> dict[int, Values]:
    """What the default and the finalists change, by number. Raises `UserError` when the default failed."""
    default = study.trials.outcome(study.default())
    if default.end == "failed":
        raise UserError(f"the default configuration failed: {default.error}")
    outcomes = study.trials.outcomes()
    values = {outcome.trial.number: outcome.trial.values for outcome in outcomes if outcome.trial.stage == "search"}
    return {number: values[number] for number in [DEFAULT, *finalists(study, study.options.finalists)]}


def draw(study: Study, choice: Choice | None) -> None:
    """The page of the search, at the end of each stage: it takes seconds, too long for the end of each trial.

    Without the packages that draw it the search goes on, and says so.
    """
    try:
        print(f"{write_page(study, study.trials.outcomes(), choice)} shows the search")
    except UserError as error:
        print(f"warning: {error}", file=sys.stderr, flush=True)


def accuracies_of(results: Sequence[Outcome], study: Study) -> dict[int, list[float]]:
    """By number, in the order of the seeds; configurations that failed on a seed drop out."""
    found: dict[int, list[float]] = {}
    for outcome in results:
        found.setdefault(outcome.trial.number, [])
        if outcome.end == "finished":
            found[outcome.trial.number].append(outcome.best)
    whole = {number: values for number, values in found.items() if len(values) == study.options.seeds}
    if DEFAULT not in whole:
        failed = next(o for o in results if o.trial.number == DEFAULT and o.end != "finished")
        raise UserError(f"the default configuration failed on seed {failed.trial.seed}: {failed.error}")
    return whole


def main(argv: Sequence[str] | None = None) -> None:
    with one_line_errors("tune.search"):
        study, options = plan(sys.argv[1:] if argv is None else argv)
        check_shards(study.base)
        with sole_writer(study.folder):
            begin(study, options.resume)
            with runner_of(options) as runner:
                (search if study.options.trials else repeat)(study, runner)


if __name__ == "__main__":
    main()
