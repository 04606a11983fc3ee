"""Write a search's report (search.html) with results, figures and tables. The page works offline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adadf_dist.errors import UserError
from adadf_dist.files.atomic import write_text
from adadf_dist.html.render import render_page
from tune.report.axes import label
from tune.report.results import conclude, name_of
from tune.study.comparable import match_budgets
from tune.study.selection import Selection
from tune.study.study import Study
from tune.study.trial import DEFAULT, TrialResult

if TYPE_CHECKING:
    import plotly.graph_objects as go

PAGE = "search.html"


def write_page(study: Study, outcomes: Sequence[TrialResult], choice: Selection | None) -> Path:
    """Write search.html to the study's folder atomically. While the search is running, `choice` is None.

    Raises `UserError` if plotly or optuna is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs  # slow to import, and optional

        from tune.report.figures import importance_chart, parallel_coordinates, scatter
        from tune.report.importance import importance
    except ImportError as error:
        raise UserError(
            f"{PAGE} not written ({error}); install the missing package with pip install 'adadf_dist[tune]' and "
            "rerun the search with --resume"
        ) from None
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
        plotly=get_plotlyjs(),
        figures={name: figure_html(name, figure) for name, figure in figures.items()},
        study=study,
        options=study.options,
        space=Path(study.space.name).stem,
        ends=Counter(o.status or "running" for o in outcomes if o.trial.stage == "search"),
        choice=choice,
        result=conclude(choice) if choice is not None else "",
        tested=[o for o in outcomes if o.test is not None and choice is not None and o.trial.number == choice.winner],
        sampled={o.trial.number: o.trial for o in outcomes if o.trial.stage == "search"},
        default=DEFAULT,
        name_of=name_of,
        label=label,
        compared=compared,
        weighed=weighed,
        halted=any(outcome.status == "pruned" for outcome in outcomes),
        lost=sum(o.trial.stage == "search" and o.status == "failed" and not o.epochs for o in outcomes),
        outcomes=sorted(outcomes, key=lambda o: (-o.epochs, -o.best, o.trial.name)),
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
