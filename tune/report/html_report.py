"""The report of a search, search.html: result, figures and tables. The page works offline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadf_dist.errors import UserError
from adadf_dist.files.atomic import write_text
from adadf_dist.html.render import render_page
from adadf_dist.metrics.classification import Interval
from tune.report.axes import label
from tune.report.results import describe, name_of
from tune.study.comparable import match_budgets
from tune.study.selection import Candidate, Selection
from tune.study.study import Study
from tune.study.trial import DEFAULT, Trial, TrialResult

if TYPE_CHECKING:
    import plotly.graph_objects as go

PAGE = "search.html"


def write_page(study: Study, outcomes: Sequence[TrialResult], choice: Selection | None) -> Path:
    """Write search.html to the study's folder atomically. `choice` is None while the search is running.

    Raises `UserError` if plotly or optuna is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs  # slow to import, and optional

        from tune.report.figures import importance_chart, parallel_coordinates, scatter
        from tune.report.importance import importance
    except ImportError as error:
        raise UserError(f"{PAGE} skipped ({error}); pip install 'adadf_dist[tune]' and rerun with --resume") from None
    compared = match_budgets(study, outcomes)
    weighed = importance(study, compared)
    figures: dict[str, go.Figure] = {}
    if weighed.shares:
        figures["importance"] = importance_chart(weighed.shares)
    if compared.outcomes:
        figures["parallel"] = parallel_coordinates(study, compared)
    if any(outcome.epochs for outcome in outcomes):
        figures["scatter"] = scatter(study, outcomes, choice)
    page = render_page(
        Path(__file__).with_name("page.html"),
        title=study.folder.name,
        stylesheet="page.css",
        plotly=get_plotlyjs(),
        figures={name: figure_html(name, figure) for name, figure in figures.items()},
        study=study,
        options=study.options,
        space=Path(study.space.name).stem,
        counted=count_ends(outcomes),
        choice=choice,
        result=describe(choice)[0].partition(":")[0] if choice is not None else "",  # the rest is about best.toml
        tested=[o for o in outcomes if o.test is not None and choice is not None and o.trial.number == choice.winner],
        candidates=candidate_rows(study, outcomes, choice) if choice is not None else [],
        name_of=name_of,
        compared=compared,
        weighed=weighed,
        halted=any(outcome.end == "halted" for outcome in outcomes),
        lost=sum(o.trial.stage == "search" and o.end == "failed" and not o.epochs for o in outcomes),
        trials={stage: list(trial_rows(study, outcomes, stage)) for stage in ("search", "final")},
    )
    path = study.folder / PAGE
    write_text(path, page)
    return path


def figure_html(name: str, figure: go.Figure) -> str:
    config = {"displaylogo": False, "responsive": True, "displayModeBar": False}
    drawn: str = figure.to_html(
        full_html=False, include_plotlyjs=False, include_mathjax=False, div_id=name, config=config
    )
    return drawn


def count_ends(outcomes: Iterable[TrialResult]) -> str:
    ends = Counter(o.end or "running" for o in outcomes if o.trial.stage == "search")
    return ", ".join(f"{count} {end}" for end, count in ends.items()) or "none started"


def candidate_rows(study: Study, outcomes: Sequence[TrialResult], choice: Selection) -> list[dict[str, Any]]:
    trials = {o.trial.number: o.trial for o in outcomes if o.trial.stage == "search"}
    return [candidate_row(study, c, trials[c.number], c.number == choice.winner) for c in choice.candidates]


def candidate_row(study: Study, candidate: Candidate, trial: Trial, winner: bool) -> dict[str, Any]:
    values = study.full_values(trial) if candidate.number == DEFAULT else trial.values
    difference = candidate.difference
    points = None if difference is None else Interval(*(100 * end for end in difference.interval))
    return {
        "winner": winner,
        "name": name_of(candidate.number),
        "settings": [f"{key} = {label(value)}" for key, value in values.items()],
        "numbers": [
            format_accuracy(candidate.mean),
            format_interval(candidate.interval, "{:.2%}"),
            format_accuracy(candidate.mean_class_accuracy),
            "" if difference is None else f"{100 * difference.mean:+.2f}",
            "" if points is None else format_interval(points, "{:+.2f}"),
        ],
        "seeds": " ".join(f"{100 * accuracy:.2f}" for accuracy in candidate.accuracies),
    }


def format_accuracy(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{accuracy:.2%}"


def format_interval(interval: Interval, form: str) -> str:
    return f"{form.format(interval.low)} to {form.format(interval.high)}"


def trial_rows(study: Study, outcomes: Sequence[TrialResult], stage: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table of trials: the trials with most epochs first, then the most accurate."""
    inside = [outcome for outcome in outcomes if outcome.trial.stage == stage]
    for outcome in sorted(inside, key=lambda o: (-o.epochs, -o.best, o.trial.name)):
        accuracies = (
            [outcome.best, outcome.mean_class_accuracy, outcome.accuracies[-1]] if outcome.epochs else [None] * 3
        )
        tested = [outcome.test] if stage == "final" else []
        yield {
            "name": outcome.trial.name,
            "settings": [
                (label(value), key in outcome.trial.values) for key, value in study.full_values(outcome.trial).items()
            ],
            "epochs": outcome.epochs,
            "accuracies": [format_accuracy(value) for value in (*accuracies, *tested)],
            "end": ": ".join(filter(None, (outcome.end or "running", outcome.error))),
        }
