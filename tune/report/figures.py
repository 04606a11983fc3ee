"""Plot the results of a search using plotly."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from tune.report.axes import Axis, axes_of, label
from tune.study.comparable import MatchedResults
from tune.study.selection import Selection
from tune.study.study import Study
from tune.study.trial import DEFAULT, Trial, TrialResult

COLUMNS = 3
INK, GREY, RULE = "#1d2530", "#6b7280", "#e3e6ea"
BLUE, ORANGE = "#0072b2", "#d55e00"
"""Colors that color-blind readers can distinguish. Markers also differ in shape, for black-and-white printing."""
FONT = {"family": "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif", "size": 12, "color": INK}


def importance_chart(shares: Mapping[str, float]) -> go.Figure:
    """Plot the importance of each hyperparameter as a bar, with the largest on top."""
    keys = list(shares)[::-1]
    values = [shares[key] for key in keys]
    figure = go.Figure(
        go.Bar(
            x=values,
            y=keys,
            orientation="h",
            marker={"color": BLUE},
            text=[f"{value:.0%}" for value in values],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{x:.1%}<extra></extra>",
        )
    )
    figure.update_layout(**layout(height=60 + 30 * len(keys)), bargap=0.35)
    figure.update_xaxes(range=[0, max(values) * 1.08], tickformat=".0%", gridcolor=RULE, zeroline=False)
    figure.update_yaxes(automargin=True, ticksuffix="  ")
    return figure


def parallel_coordinates(study: Study, compared: MatchedResults) -> go.Figure:
    """Plot each trial as a line across one axis per hyperparameter and an accuracy axis."""
    axes = axes_of(study)
    lines = []
    for outcome, accuracy in zip(compared.outcomes, compared.accuracies, strict=True):
        values = study.full_values(outcome.trial)
        positions = [axis.coordinate(values[axis.key]) for axis in axes]
        if all(map(math.isfinite, positions)):
            lines.append((*positions, accuracy))
    lines.sort(key=lambda line: line[-1])  # plot the best last, on top
    columns = list(zip(*lines, strict=True)) or [()] * (len(axes) + 1)
    accuracies = columns[-1]
    dimensions = [dimension(axis, column) for axis, column in zip(axes, columns, strict=False)]
    dimensions.append({"label": "accuracy", "values": accuracies, "tickformat": ".1%"})
    figure = go.Figure(
        go.Parcoords(
            dimensions=dimensions,
            line={"color": accuracies, "colorscale": "Viridis", "reversescale": True},
            labelfont={"size": 12, "color": INK},
            tickfont={"size": 11, "color": INK},
            rangefont={"size": 1, "color": "rgba(0,0,0,0)"},
            labelside="top",
        )
    )
    return figure.update_layout(**{**layout(height=420), "margin": {"l": 70, "r": 50, "t": 60, "b": 20}})


def dimension(axis: Axis, positions: Sequence[float]) -> dict[str, Any]:
    low, high = axis.limits
    found: dict[str, Any] = {"label": axis.key.replace(".", ".<br>"), "values": positions, "range": [low, high]}
    if axis.scale == "steps":
        ticks = axis.values
        found["range"] = [low - 0.5, high + 0.5] if low == high else [low, high]
    elif axis.scale == "log":
        ticks = tuple(decades(*axis.values))
    else:
        return found
    return {**found, "tickvals": [axis.coordinate(tick) for tick in ticks], "ticktext": [label(tick) for tick in ticks]}


def decades(low: float, high: float) -> Iterator[float]:
    """Yield axis ticks within the limits: 1 and 3 times each power of ten, or only the powers if there are many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for exponent in range(first, last + 1):
        for digit in (1, 3) if last - first <= 3 else (1,):
            value = float(f"{digit}e{exponent}")
            if low * (1 - 1e-9) <= value <= high * (1 + 1e-9):
                yield value


class MarkerGroup(NamedTuple):
    """Trials that are drawn with the same marker."""

    name: str
    marker: dict[str, Any]
    outcomes: list[TrialResult]


def scatter(study: Study, outcomes: Sequence[TrialResult], choice: Selection | None) -> go.Figure:
    """Plot accuracy against each hyperparameter, for search trials and for candidates on held-out seeds."""
    axes = axes_of(study)
    columns = min(COLUMNS, len(axes))
    rows = math.ceil(len(axes) / columns)
    height = 80 + 300 * rows
    figure = make_subplots(
        rows, columns, shared_yaxes="all", horizontal_spacing=0.025, vertical_spacing=85 / height if rows > 1 else 0
    )
    trials = {o.trial.number: o.trial for o in outcomes if o.trial.stage == "search"}
    for at, axis in enumerate(axes):
        cell = {"row": at // columns + 1, "col": at % columns + 1}
        for marks in marks_of(outcomes):
            inside = [o for o in marks.outcomes if axis.key in o.trial.values or o.trial.number == DEFAULT]
            figure.add_trace(trial_markers(study, axis, marks, inside, legend=at == 0), **cell)
        if choice is not None:
            for finalists in (True, False):
                figure.add_trace(mean_markers(study, axis, choice, trials, finalists, legend=at == 0), **cell)
        figure.update_xaxes(**x_axis(axis, condition(study, axis)), **cell)
    figure.update_yaxes(tickformat=".0%", gridcolor=RULE, zeroline=False, minallowed=0, maxallowed=1)
    figure.update_yaxes(title="validation accuracy", col=1)
    legend = {"orientation": "h", "x": 0, "y": 1 + 12 / height, "yanchor": "bottom", "itemsizing": "constant"}
    margin = {"l": 64, "r": 8, "t": 50, "b": 60}
    return figure.update_layout(**{**layout(height), "margin": margin, "legend": legend, "showlegend": True})


def marks_of(outcomes: Sequence[TrialResult]) -> list[MarkerGroup]:
    """Group the search trials that completed at least one epoch by the marker for their status."""
    ring = {"symbol": "circle-open", "size": 7, "color": BLUE, "opacity": 0.55, "line": {"width": 1.3}}
    looks: dict[str, dict[str, Any]] = {
        "finished": {"symbol": "circle", "size": 7, "color": BLUE, "opacity": 0.85},
        "stopped early": ring,
        "failed": {**ring, "symbol": "x-thin-open", "color": GREY},
        "running": {**ring, "symbol": "diamond-open", "color": GREY},
        "default": {"symbol": "star", "size": 11, "color": INK},
    }
    names = {"finished": "finished", "pruned": "stopped early", "failed": "failed", "": "running"}
    found = {name: MarkerGroup(name, marker, []) for name, marker in looks.items()}
    for outcome in outcomes:
        if outcome.trial.stage == "search" and outcome.epochs:
            default = outcome.trial.number == DEFAULT
            found["default" if default else names[outcome.status]].outcomes.append(outcome)
    return [marks for marks in found.values() if marks.outcomes]


def trial_markers(
    study: Study, axis: Axis, marks: MarkerGroup, outcomes: Sequence[TrialResult], legend: bool
) -> go.Scatter:
    return go.Scatter(
        x=[x_coordinate(study, axis, o.trial, (0.5 - o.trial.number * 0.618034 % 1) * 0.5) for o in outcomes],
        y=[outcome.best for outcome in outcomes],
        mode="markers",
        name=marks.name,
        legendgroup=marks.name,
        showlegend=legend,
        marker=marks.marker,
        text=[hover(study, o.trial, f"{o.best:.2%} in {o.epochs} epochs") for o in outcomes],
        hovertemplate="%{text}<extra></extra>",
    )


def mean_markers(
    study: Study, axis: Axis, choice: Selection, trials: Mapping[int, Trial], finalists: bool, legend: bool
) -> go.Scatter:
    """Plot the mean accuracies on held-out seeds, with confidence intervals, of either the finalists or the default."""
    shown = [c for c in choice.candidates if (c.number != DEFAULT) == finalists]
    shown = [c for c in shown if not finalists or axis.key in trials[c.number].values]
    order = [c.number for c in choice.candidates]
    name = "finalists on held-out seeds, mean and 95% CI" if finalists else "default on held-out seeds"
    colour = ORANGE if finalists else INK
    text = [
        f"{c.mean:.2%} on {len(c.accuracies)} held-out seeds<br>{c.interval.low:.2%} to {c.interval.high:.2%}"
        for c in shown
    ]
    return go.Scatter(
        x=[x_coordinate(study, axis, trials[c.number], order.index(c.number) / len(order) * 0.4 - 0.16) for c in shown],
        y=[c.mean for c in shown],
        error_y={
            "array": [c.interval.high - c.mean for c in shown],
            "arrayminus": [c.mean - c.interval.low for c in shown],
            "color": colour,
            "thickness": 1.4,
            "width": 4,
        },
        mode="markers",
        name=name,
        legendgroup=name,
        showlegend=legend,
        marker={"symbol": "square" if finalists else "diamond", "size": 7, "color": colour},
        text=[hover(study, trials[c.number], line) for c, line in zip(shown, text, strict=True)],
        hovertemplate="%{text}<extra></extra>",
    )


def x_coordinate(study: Study, axis: Axis, trial: Trial, aside: float) -> float:
    """Return a trial's x value. Plotly computes logarithms itself, and `aside` shifts markers on a step axis."""
    value = study.full_values(trial)[axis.key]
    return axis.coordinate(value) + aside if axis.scale == "steps" else float(value)


def x_axis(axis: Axis, where: str) -> dict[str, Any]:
    title = axis.key + (f"<br><span style='font-size:11px'>{where}</span>" if where else "")
    drawn: dict[str, Any] = {"title": {"text": title, "standoff": 6}, "gridcolor": RULE, "zeroline": False}
    if axis.scale == "linear":
        return drawn
    if axis.scale == "log":
        ticks = list(decades(*axis.values))
        return {**drawn, "type": "log", "tickvals": ticks, "ticktext": [label(tick) for tick in ticks]}
    ticks = [axis.coordinate(value) for value in axis.values]
    return {
        **drawn,
        "tickvals": ticks,
        "ticktext": [label(value) for value in axis.values],
        "range": [-0.6, len(ticks) - 0.4],
        "showgrid": False,
    }


def condition(study: Study, axis: Axis) -> str:
    when = study.space.domains[axis.key].when
    return "where " + " and ".join(f"{key} is {label(value)}" for key, value in when.items()) if when else ""


def hover(study: Study, trial: Trial, text: str) -> str:
    values = [f"{key} = {label(value)}" for key, value in study.full_values(trial).items()]
    return "<br>".join([f"<b>{trial.name}</b>", text, *values])


def layout(height: int) -> dict[str, Any]:
    return {
        "template": "none",
        "height": height,
        "font": FONT,
        "margin": {"l": 20, "r": 50, "t": 10, "b": 40},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {"bgcolor": "white", "bordercolor": GREY, "font": {"size": 12}, "align": "left"},
        "showlegend": False,
    }
