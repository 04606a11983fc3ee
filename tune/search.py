"""Search hyperparameters and report whether the improvement is statistically significant. See --help."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from adadf_dist.console.exit import cli_errors
from adadf_dist.console.logs import get_logger
from adadf_dist.errors import UserError
from adadf_dist.metrics.intervals import accuracy_interval
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

logger = get_logger(__name__)


def run_seeds(study: Study, runner: Runner) -> None:
    """Train the default configuration on every held-out seed, and print its mean validation and test accuracy.

    No configuration is selected here, so every run may be evaluated on the test split.
    """
    runs = [replace(trial, test=True) for trial in study.final_trials({DEFAULT: {}})]
    text = ProgressReporter(study, len(runs))
    runner.run(study, runs, text)
    text()
    outcomes = [study.trials.result(trial) for trial in runs]
    finished_on_every_seed(outcomes, study)  # raises where one failed
    splits: tuple[Split, ...] = ("validation", "test")
    for name in splits:
        tested = [outcome for outcome in outcomes if name == "validation" or outcome.tested]
        if tested:  # a dataset may lack a test split
            print(describe_repeats(name, tested, study))


def describe_repeats(split: Split, outcomes: Sequence[TrialResult], study: Study) -> str:
    """Return one line with the mean accuracy of a configuration over its seeds."""
    scores = [read_score(study, outcome, split) for outcome in outcomes]
    metrics = [outcome.selected if split == "validation" else outcome.tested for outcome in outcomes]
    low, high = accuracy_interval(scores)
    mean, mean_class = fmean(s.accuracy for s in scores), fmean(m["mean_class_accuracy"] for m in metrics)
    interval = f"95% CI for new seeds and samples {low:.2%} to {high:.2%}"
    return f"{split} accuracy: {mean:.2%} on {len(scores)} seeds ({interval}), mean class accuracy {mean_class:.2%}"


def search(study: Study, runner: Runner) -> Selection:
    """Run or resume the search and select the winner. Raises `UserError` if the default configuration fails."""
    options = study.options
    most = 1 + options.trials + options.seeds * (1 + min(options.finalists, options.trials))
    text = ProgressReporter(study, most)
    print(describe_plan(study))
    runner.search(study, text)
    text()  # also when there was nothing left to run
    values = select_configurations(study)
    write_search_page(study, None)
    text.settle()
    finals = study.final_trials(values)
    runner.run(study, finals, text)
    choice = choose_finalist(study, [study.trials.result(trial) for trial in finals])
    print("\n".join(describe(choice)))
    text.settle()
    winner = values[choice.winner]
    best_file = write_best(study, choice, winner)
    tested = replace(study.final_trials({choice.winner: winner})[0], test=True)  # the only use of the test split
    runner.run(study, [tested], text)
    write_search_page(study, choice)
    print(describe_test(study, tested))
    if options.keep != "all":
        for trial in finals:
            if trial.seed != tested.seed:  # an extended search may find another winner
                study.trials.drop_checkpoints(trial)
    print(f"python -m adadf_dist.train --config {best_file}")
    return choice


def select_configurations(study: Study) -> dict[int, Values]:
    """Return the default and the finalists, as a mapping from configuration numbers to changed values.

    Raises `UserError` if the default configuration failed.
    """
    default = study.trials.result(study.default())
    if default.status == "failed":
        raise UserError(f"the default configuration failed: {default.error}")
    outcomes = study.trials.outcomes()
    values = {outcome.trial.number: outcome.trial.values for outcome in outcomes if outcome.trial.stage == "search"}
    return {number: values[number] for number in [DEFAULT, *select_finalists(study, study.options.finalists)]}


def write_search_page(study: Study, choice: Selection | None) -> None:
    """Write search.html and print its path, or log a warning if its optional packages are missing.

    Writing takes seconds, so it is done after each stage of the search and not after each trial.
    """
    try:
        print(f"report: {write_page(study, study.trials.outcomes(), choice)}")
    except UserError as error:
        logger.warning(f"{error}")


def choose_finalist(study: Study, outcomes: Sequence[TrialResult]) -> Selection:
    """Select the winner from the default and the finalists that finished on every seed.

    Raises `UserError` if the default failed on a seed.
    """
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
    """Group results by configuration number, keeping only configurations that finished on every seed.

    Raises `UserError` if the default is not among them.
    """
    found: dict[int, list[TrialResult]] = {}
    for outcome in results:
        found.setdefault(outcome.trial.number, [])
        if outcome.status == "finished":
            found[outcome.trial.number].append(outcome)
    whole = {number: outcomes for number, outcomes in found.items() if len(outcomes) == study.options.seeds}
    if DEFAULT not in whole:
        failed = next(o for o in results if o.trial.number == DEFAULT and o.status != "finished")
        raise UserError(f"the default configuration failed on seed {failed.trial.seed}: {failed.error}")
    return whole


def main(argv: Sequence[str] | None = None) -> None:
    with cli_errors("tune.search"):
        study, options = plan(sys.argv[1:] if argv is None else argv)
        with open_study(study, options.resume, options) as runner:
            (search if study.options.trials else run_seeds)(study, runner)


if __name__ == "__main__":
    main()
