"""Search the constants of a run, and report whether what was found is significant. See --help."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from adadf_dist.console.exit import cli_errors
from adadf_dist.errors import UserError
from adadf_dist.metrics.comparison import accuracy_interval
from tune.report.html_report import write_page
from tune.report.progress import ProgressReporter
from tune.report.results import describe, describe_plan, describe_test, write_best
from tune.runners.local import Runner
from tune.search_options import plan
from tune.setup import open_study
from tune.study.scores import Split, find_collapse, read_score
from tune.study.selection import Selection, select_finalists, select_winner
from tune.study.space import Values
from tune.study.study import Study
from tune.study.trial import DEFAULT, TrialResult


def run_seeds(study: Study, runner: Runner) -> None:
    """The default alone, on every final seed. Nothing is chosen, so each run is tested at its end."""
    runs = [replace(trial, test=True) for trial in study.final_trials({DEFAULT: {}})]
    told = ProgressReporter(study, len(runs))
    runner.run(study, runs, told)
    told()
    outcomes = [study.trials.result(trial) for trial in runs]
    finished_on_every_seed(outcomes, study)  # raises where one failed
    splits: tuple[Split, ...] = ("validation", "test")
    for name in splits:
        tested = [outcome for outcome in outcomes if name == "validation" or outcome.tested]
        if tested:  # a dataset may lack a test split
            print(describe_repeats(name, tested, study))


def describe_repeats(split: Split, outcomes: Sequence[TrialResult], study: Study) -> str:
    """Mean accuracy of one configuration over its seeds."""
    scores = [read_score(study, outcome, split) for outcome in outcomes]
    metrics = [outcome.selected if split == "validation" else outcome.tested for outcome in outcomes]
    low, high = accuracy_interval(scores)
    mean, mean_class = fmean(s.accuracy for s in scores), fmean(m["mean_class_accuracy"] for m in metrics)
    interval = f"95 % interval for new seeds and samples {low:.2%} to {high:.2%}"
    return f"{split} accuracy: {mean:.2%} on {len(scores)} seeds ({interval}), mean class accuracy {mean_class:.2%}"


def search(study: Study, runner: Runner) -> Selection:
    """From where the study stands to its answer. Raises `UserError` when too little was left to choose from."""
    options = study.options
    most = 1 + options.trials + options.seeds * (1 + min(options.finalists, options.trials))
    told = ProgressReporter(study, most)
    print(describe_plan(study))
    runner.search(study, told)
    told()  # where there was nothing left to run, too
    values = select_configurations(study)
    write_search_page(study, None)
    told.settle()
    finals = study.final_trials(values)
    runner.run(study, finals, told)
    choice = choose_finalist(study, [study.trials.result(trial) for trial in finals])
    print("\n".join(describe(choice)))
    told.settle()
    winner = values[choice.winner]
    best_file = write_best(study, choice, winner)
    tested = replace(study.final_trials({choice.winner: winner})[0], test=True)  # the test split is read here alone
    runner.run(study, [tested], told)
    write_search_page(study, choice)
    print(describe_test(study, tested))
    if options.keep != "all":
        for trial in finals:
            if trial.seed != tested.seed:  # a search that grows may find another winner, to be tested by this seed's
                study.trials.drop_checkpoints(trial)
    print(f"python -m adadf_dist.train --config {best_file}")
    return choice


def select_configurations(study: Study) -> dict[int, Values]:
    """What the default and the finalists change, by number. Raises `UserError` when the default failed."""
    default = study.trials.result(study.default())
    if default.end == "failed":
        raise UserError(f"the default configuration failed: {default.error}")
    outcomes = study.trials.outcomes()
    values = {outcome.trial.number: outcome.trial.values for outcome in outcomes if outcome.trial.stage == "search"}
    return {number: values[number] for number in [DEFAULT, *select_finalists(study, study.options.finalists)]}


def write_search_page(study: Study, choice: Selection | None) -> None:
    """The page of the search, at the end of each stage: it takes seconds, too long for the end of each trial.

    Without the packages that draw it the search goes on, and says so.
    """
    try:
        print(f"{write_page(study, study.trials.outcomes(), choice)} shows the search")
    except UserError as error:
        print(f"warning: {error}", file=sys.stderr, flush=True)


def choose_finalist(study: Study, outcomes: Sequence[TrialResult]) -> Selection:
    """Compare the finalists that finished on every seed. Raises `UserError` when the default failed on one."""
    runs = finished_on_every_seed(outcomes, study)
    classes = study.trials.classes(outcomes[0].trial)
    means, collapses = {}, {}
    for number, finished in runs.items():
        known = [o.mean_class_accuracy for o in finished if o.mean_class_accuracy is not None]
        means[number] = fmean(known) if len(known) == len(finished) else None
        collapses[number] = "; ".join(filter(None, (find_collapse(outcome, classes) for outcome in finished)))
    scores = {number: [read_score(study, outcome) for outcome in finished] for number, finished in runs.items()}
    return select_winner(scores, collapses, means)


def finished_on_every_seed(results: Sequence[TrialResult], study: Study) -> dict[int, list[TrialResult]]:
    """By number, in the order of the seeds; configurations that failed on a seed drop out."""
    found: dict[int, list[TrialResult]] = {}
    for outcome in results:
        found.setdefault(outcome.trial.number, [])
        if outcome.end == "finished":
            found[outcome.trial.number].append(outcome)
    whole = {number: outcomes for number, outcomes in found.items() if len(outcomes) == study.options.seeds}
    if DEFAULT not in whole:
        failed = next(o for o in results if o.trial.number == DEFAULT and o.end != "finished")
        raise UserError(f"the default configuration failed on seed {failed.trial.seed}: {failed.error}")
    return whole


def main(argv: Sequence[str] | None = None) -> None:
    with cli_errors("tune.search"):
        study, options = plan(sys.argv[1:] if argv is None else argv)
        with open_study(study, options.resume, options) as runner:
            (search if study.options.trials else run_seeds)(study, runner)


if __name__ == "__main__":
    main()
