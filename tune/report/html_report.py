"""The report of a search, search.html: result, figures and tables. The page works offline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from adadf_dist.errors import UserError
from adadf_dist.files.atomic import write_text
from adadf_dist.metrics.classification import Interval
from tune.report.axes import label
from tune.report.results import conclude, name_of
from tune.study.comparable import MatchedResults, match_budgets
from tune.study.selection import Candidate, Selection
from tune.study.study import Study
from tune.study.trial import DEFAULT, Trial, TrialResult

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from tune.report.importance import Importance

PAGE = "search.html"

STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 1120px; padding: 40px 32px 64px; background: #fff; color: #1d2530;
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; font-weight: 650; }
h2 { font-size: 18px; margin: 44px 0 6px; font-weight: 650; }
p { margin: 6px 0; max-width: 88ch; }
.lead, .note, figcaption { color: #5b6470; }
.note, figcaption { font-size: 13.5px; }
.answer { font-size: 19px; font-weight: 600; border-left: 4px solid #0072b2; margin: 22px 0 14px;
  padding: 4px 0 4px 14px; }
.values { color: #5b6470; font-size: 12.5px; }
.values span { white-space: nowrap; margin-right: 10px; }
code { font: 13px ui-monospace, "SF Mono", Menlo, Consolas, monospace; background: #f3f5f7; padding: 1px 5px;
  border-radius: 3px; }
figure { margin: 12px 0 0; }
.scroll { overflow-x: auto; margin-top: 12px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
.trials { font-size: 12px; }
th { text-align: right; vertical-align: bottom; font-weight: 600; padding: 5px 9px;
  border-bottom: 1.5px solid #1d2530; }
td { text-align: right; vertical-align: top; border-bottom: 1px solid #e3e6ea; padding: 5px 9px; white-space: nowrap; }
.trials th, .trials td { padding: 3px 7px; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td.wide { white-space: normal; max-width: 560px; }
td.seeds { white-space: normal; width: 130px; }
tr.winner td { background: #eef5fa; }
.idle { color: #a3abb5; }
.words { text-align: left; white-space: normal; min-width: 70px; }
@media print { body { max-width: none; padding: 0; } h2, figure { break-inside: avoid; } h2 { break-after: avoid; } }
@media screen and (prefers-color-scheme: dark) {
  html { background: #fff; filter: invert(0.92) hue-rotate(180deg); }
}
"""
"""Dark mode inverts the lightness of the page."""


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
    sections = [heading(study, outcomes), answer(study, outcomes, choice)]
    sections += ["<h2>Hyperparameter importance</h2>", *about_importance(study, compared, weighed)]
    if weighed.shares:
        sections.append(figure_html("importance", importance_chart(weighed.shares)))
    if compared.outcomes:
        sections += ["<h2>Trials across all hyperparameters</h2>", about_parallel(study, compared)]
        sections.append(figure_html("parallel", parallel_coordinates(study, compared)))
    if any(outcome.epochs for outcome in outcomes):
        sections += ["<h2>Accuracy by hyperparameter</h2>", about_scatter(study, outcomes, choice)]
        sections.append(figure_html("scatter", scatter(study, outcomes, choice)))
    sections += trials_tables(study, outcomes)
    path = study.folder / PAGE
    write_text(path, html_document(study.folder.name, get_plotlyjs(), sections))
    return path


def html_document(title: str, script: str, sections: Iterable[str]) -> str:
    head = (
        f'<meta charset="utf-8">\n<meta name="viewport" content="width=device-width">\n<title>{escape(title)}</title>'
    )
    parts = [f"<style>{STYLE}</style>", f"<script>{script}</script>", "</head>", "<body>", *sections, "</body></html>"]
    return "\n".join(["<!doctype html>", '<html lang="en"><head>', head, *parts]) + "\n"


def figure_html(name: str, figure: go.Figure) -> str:
    config = {"displaylogo": False, "responsive": True, "displayModeBar": False}
    drawn = figure.to_html(full_html=False, include_plotlyjs=False, include_mathjax=False, div_id=name, config=config)
    return f"<figure>{drawn}</figure>"


def p_html(text: str, kind: str = "note") -> str:
    return f'<p class="{kind}">{text}</p>'


def heading(study: Study, outcomes: Sequence[TrialResult]) -> str:
    options = study.options
    space = escape(Path(study.space.name).stem)
    ends = Counter(o.end or "running" for o in outcomes if o.trial.stage == "search")
    counted = ", ".join(f"{count} {end}" for end, count in ends.items()) or "none started"
    lead = [
        f"{options.trials} configurations of the space <code>{space}</code> and the default, all on seed "
        f"{study.base.seed} ({counted}). The best {min(options.finalists, options.trials)} and the default are "
        f"retrained on {options.seeds} held-out seeds and compared there."
    ]
    if options.halving and options.halving.rungs:
        rungs = ", ".join(map(str, options.halving.rungs))
        lead.append(
            f"ASHA rungs at epochs {rungs} of {options.halving.epochs}: a trial outside the best 1 in "
            f"{options.halving.factor} of the earlier trials was stopped early."
        )
    return f"<h1>{escape(study.folder.name)}</h1>" + p_html(" ".join(lead), "lead")


def answer(study: Study, outcomes: Sequence[TrialResult], choice: Selection | None) -> str:
    if choice is None:
        return p_html("The search is still running.", "answer")
    text = conclude(choice)
    parts = [p_html(escape(f"{text[0].upper()}{text[1:]}."), "answer")]
    trials = {o.trial.number: o.trial for o in outcomes if o.trial.stage == "search"}
    parts += [
        f"<p>Test accuracy of seed {o.trial.seed}, evaluated once: <b>{o.test:.2%}</b>{mean_class(o)}. "
        "Train this configuration with <code>best.toml</code> in the same folder.</p>"
        for o in outcomes
        if o.test is not None and o.trial.number == choice.winner
    ]
    parts += [
        p_html(escape(f"{name_of(c.number)} collapsed ({c.collapse})."), "answer")
        for c in choice.candidates
        if c.collapse
    ]
    heads = ["", "mean", "95% CI", "mean class", "vs. default", "95% CI", "each seed, %"]
    rows = [candidate_row(study, c, trials[c.number], c.number == choice.winner) for c in choice.candidates]
    parts.append(table("candidates", heads, rows))
    comparisons = sum(c.difference is not None for c in choice.candidates)
    parts.append(
        p_html(
            "Validation accuracy of the selected epoch on held-out seeds; differences in percentage points, "
            "paired by seed and sample. Intervals cover seed variance and the finite number of samples"
            + (f"; those of differences are widened for {comparisons} comparisons." if comparisons > 1 else ".")
        )
    )
    return "\n".join(parts)


def mean_class(outcome: TrialResult) -> str:
    value = outcome.tested.get("mean_class_accuracy")
    return "" if value is None else f", mean class accuracy <b>{value:.2%}</b>"


def candidate_row(study: Study, candidate: Candidate, trial: Trial, winner: bool) -> str:
    default = candidate.number == DEFAULT
    values = study.full_values(trial) if default else trial.values
    text = " ".join(f"<span>{escape(f'{key} = {label(value)}')}</span>" for key, value in values.items())
    name = name_of(candidate.number)
    cells = [f'<td class="wide">{name}<div class="values">{text}</div></td>', td(f"{candidate.mean:.2%}")]
    cells.append(td(format_interval(candidate.interval, "{:.2%}")))
    cells.append(td("" if candidate.mean_class_accuracy is None else f"{candidate.mean_class_accuracy:.2%}"))
    difference = candidate.difference
    cells.append(td("" if difference is None else f"{100 * difference.mean:+.2f}"))
    points = None if difference is None else Interval(*(100 * end for end in difference.interval))
    cells.append(td("" if points is None else format_interval(points, "{:+.2f}")))
    cells.append(td(" ".join(f"{100 * accuracy:.2f}" for accuracy in candidate.accuracies), "seeds"))
    return f"<tr{' class=winner' if winner else ''}>{''.join(cells)}</tr>"


def format_interval(interval: Interval, form: str) -> str:
    return f"{form.format(interval.low)} to {form.format(interval.high)}"


def about_importance(study: Study, compared: MatchedResults, weighed: Importance) -> list[str]:
    if weighed.refused:
        return [p_html(f"Not computed: {escape(weighed.refused)}.")]
    constants = len(study.space.domains)
    text = [
        f"Fraction of the variance of {compared.accuracy} explained by each hyperparameter alone (fANOVA: a random "
        f"forest over {weighed.trials} trials; main effects only, no interactions)."
    ]
    if compared.epochs is not None:
        text.append(
            f"Accuracies after different numbers of epochs are not comparable, so all trials are compared at epoch "
            f"{compared.epochs}, the first rung. What matters early may not matter at the end."
        )
    few = " With so few trials, the result is only indicative." if weighed.few else ""
    text.append(f"Based on {weighed.trials} trials of {constants} hyperparameters on one seed.{few}")
    if study.options.searcher == "tpe":
        text.append("TPE samples near good trials, so poor regions of the space are covered less.")
    return [p_html(" ".join(text))]


def about_parallel(study: Study, compared: MatchedResults) -> str:
    text = (
        f"Each line is a search trial; its color and last axis show its {compared.accuracy}. Drag along an axis to "
        "select trials, drag a name to move its axis."
    )
    if any(domain.when for domain in study.space.domains.values()):
        text += " An inactive conditional hyperparameter has its default."
    return p_html(text)


def about_scatter(study: Study, outcomes: Sequence[TrialResult], choice: Selection | None) -> str:
    text = "Each dot is a search trial at its best epoch, on one seed."
    if any(outcome.end == "halted" for outcome in outcomes):
        text += " Hollow dots were stopped early: with fewer epochs, they are not comparable with the others."
    if choice is not None:
        text += (
            " Bars are 95% CIs of means on held-out seeds. A finalist's dot tends to lie above its mean, because it "
            "was selected for its high accuracy."
        )
    lost = [o for o in outcomes if o.trial.stage == "search" and o.end == "failed" and not o.epochs]
    if lost:
        text += f" {len(lost)} failed before finishing an epoch and are not shown."
    return p_html(text)


def trials_tables(study: Study, outcomes: Sequence[TrialResult]) -> list[str]:
    keys = [escape(key).replace(".", ".<wbr>").replace("_", "_<wbr>") for key in study.space.domains]
    parts = []
    for stage, title in (("search", "Search trials"), ("final", "Trials on held-out seeds")):
        inside = [outcome for outcome in outcomes if outcome.trial.stage == stage]
        if inside:
            heads = [
                "trial",
                *keys,
                "epochs",
                "best",
                "mean class",
                "last",
                *(["test"] if stage == "final" else []),
                "end",
            ]
            inside.sort(key=lambda o: (-o.epochs, -o.best, o.trial.name))
            parts += [f"<h2>{title}</h2>", table("trials", heads, [trial_row(study, outcome) for outcome in inside])]
    about = (
        "Sorted by epochs, then by accuracy, as for selecting finalists. Unchanged values are gray. "
        "<code>trials.csv</code> contains the same rows, unrounded."
    )
    return [*parts, p_html(about)]


def trial_row(study: Study, outcome: TrialResult) -> str:
    trial = outcome.trial
    cells = [td(trial.name)]
    for key, value in study.full_values(trial).items():
        cells.append(td(escape(label(value)), "" if key in trial.values else "idle"))
    accuracies = [outcome.best, outcome.mean_class_accuracy, outcome.accuracies[-1]] if outcome.epochs else [None] * 3
    tested = [outcome.test] if trial.stage == "final" else []
    cells.append(td(str(outcome.epochs)))
    cells += [td("" if value is None else f"{value:.2%}") for value in (*accuracies, *tested)]
    cells.append(td(escape(": ".join(filter(None, (outcome.end or "running", outcome.error)))), "words"))
    return f"<tr>{''.join(cells)}</tr>"


def td(text: str, kind: str = "") -> str:
    return f'<td class="{kind}">{text}</td>' if kind else f"<td>{text}</td>"


def table(kind: str, heads: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f'<th class="words">{text}</th>' if text == "end" else f"<th>{text}</th>" for text in heads)
    return f'<div class="scroll"><table class="{kind}"><tr>{head}</tr>\n' + "\n".join(rows) + "</table></div>"
