"""A table of the paper as Markdown, CSV and a plot."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from adadf_dist.comparison import Difference, mean_interval, paired_difference
from adadf_dist.errors import UserError
from adadf_dist.metrics import Interval
from adadf_dist.runtime.folder import write_text
from tune.grids import GRIDS, number_of, reference_of, rows_of
from tune.published import DATASETS, PUBLISHED
from tune.study import Study
from tune.trial import Outcome

POINTS = 100


class Line(NamedTuple):
    """A row on all its seeds. Accuracies in percent."""

    label: str
    test: dict[int, float]
    """By seed, of the selected epoch; empty where the dataset has no test split. Failed runs are left out."""
    validation: dict[int, float]
    """By seed, of the selected epoch."""
    difference: Difference | None
    """To the row that it is compared with, pair by pair, in points; None for that row itself, or without two pairs."""
    published: float | None
    failed: tuple[str, ...]
    """What went wrong on the other seeds."""

    @property
    def measured(self) -> dict[int, float]:
        return self.test or self.validation


class Table(NamedTuple):
    name: str
    title: str
    axis: str
    numeric: bool
    lines: tuple[Line, ...]
    seeds: int
    comparisons: int
    """Rows that are compared with another: for so many the intervals of the differences are widened."""
    dataset: str
    """The paper's name of it, where it is one of the paper's."""
    reference: str
    """What rows are compared with, in words."""

    @property
    def split(self) -> str:
        return "test" if any(line.test for line in self.lines) else "validation"


def table_of(study: Study, name: str, preset: str, outcomes: Sequence[Outcome]) -> Table:
    """From what is there of a study's runs."""
    base, grid = study.base, GRIDS[name]
    seeds = range(base.seed, base.seed + study.options.seeds)
    rows = rows_of(base, name)
    found: dict[int, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.trial.seed in seeds and outcome.end:
            found.setdefault(outcome.trial.number, []).append(outcome)
    comparisons = sum(reference_of(base, name, row) is not None for row in rows)
    published = PUBLISHED[name].get(preset, {})
    lines = []
    for row in rows:
        runs = found.get(number_of(base, row), [])
        reference = reference_of(base, name, row)
        difference = None if reference is None else difference_of(found.get(reference, []), runs, comparisons)
        failed = tuple(run.error for run in runs if run.error)
        lines.append(Line(row.label, tested(runs), validated(runs), difference, published.get(row.label), failed))
    against = "the row that it is set against" if any(row.against for row in rows) else "the preset's own value"
    dataset = DATASETS.get(preset, "") if published else ""
    return Table(name, grid.title, grid.axis, grid.numeric, tuple(lines), len(seeds), comparisons, dataset, against)


def tested(runs: Sequence[Outcome]) -> dict[int, float]:
    return {run.trial.seed: POINTS * run.test for run in runs if run.end == "finished" and run.test is not None}


def validated(runs: Sequence[Outcome]) -> dict[int, float]:
    return {run.trial.seed: POINTS * run.best for run in runs if run.end == "finished"}


def difference_of(first: Sequence[Outcome], second: Sequence[Outcome], comparisons: int) -> Difference | None:
    """Second less first on the seeds that both have; on test, where they were tested."""
    before, after = tested(first) or validated(first), tested(second) or validated(second)
    both = sorted(before.keys() & after.keys())
    if len(both) < 2:
        return None
    return paired_difference([before[seed] for seed in both], [after[seed] for seed in both], comparisons)


def write_table(folder: Path, table: Table) -> str:
    """NAME.md, NAME.csv and NAME.svg in `folder`. Returns the Markdown."""
    text = markdown(table)
    write_text(folder / f"{table.name}.md", text)
    write_text(folder / f"{table.name}.csv", comma_separated(table))
    try:
        plot(table, folder / f"{table.name}.svg")
    except UserError as error:
        print(f"warning: {error}", file=sys.stderr, flush=True)
    return text


def markdown(table: Table) -> str:
    head = [table.axis, f"{table.split} accuracy, %", "95 % interval", "validation, %", "difference, points"]
    head += [f"paper ({table.dataset}), %"] if table.dataset else []
    rows = [cells_of(line, bool(table.dataset)) for line in table.lines]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    notes = verdict(table)
    if short := [line.label for line in table.lines if len(line.measured) < table.seeds]:
        notes.append(f"Not on every seed: {', '.join(short)}.")
    if failed := [f"- {line.label}: {error}" for line in table.lines for error in line.failed]:
        notes += ["", "Runs that failed:", "", *failed]
    return "\n".join([f"### {table.title}", "", *lines, "", *notes]) + "\n"


def cells_of(line: Line, with_published: bool) -> list[str]:
    published = [f"{line.published:.2f}" if line.published is not None else "-"] if with_published else []
    if not line.measured:
        return [line.label, "-", "-", "-", "-", *published]
    interval = interval_of(line)
    difference = "-"
    if line.difference is not None:
        low, high = line.difference.interval
        difference = f"{line.difference.mean:+.2f} ({low:+.2f} to {high:+.2f})"
    between = "-" if interval is None else f"{interval.low:.2f} to {interval.high:.2f}"
    means = [f"{fmean(values.values()):.2f}" for values in (line.measured, line.validation)]
    return [line.label, means[0], between, means[1], difference, *published]


def interval_of(line: Line) -> Interval | None:
    """95 %, of the mean over seeds, by Student's t."""
    values = list(line.measured.values())
    return mean_interval(values) if len(values) > 1 else None


def verdict(table: Table) -> list[str]:
    """What the table says, and how it was made."""
    compared = [line for line in table.lines if line.difference is not None]
    beyond = [line.label for line in compared if not covers_zero(line)]
    said = f"Beyond noise: {', '.join(beyond)}." if beyond else "No row differs beyond noise."
    how = f"Means over {table.seeds} seeds; the difference is to {table.reference}, pair by pair, with intervals that "
    how += f"hold together at 95 % ({table.comparisons} comparisons)."
    paper = f"The paper's figures are single runs, of the epoch that was best on test; here {table.split} is read once."
    return [said, how, *([paper] if table.dataset else [])]


def covers_zero(line: Line) -> bool:
    assert line.difference is not None
    low, high = line.difference.interval
    return low <= 0 <= high


def comma_separated(table: Table) -> str:
    """A row of the table a line, with every seed's accuracies."""
    seeds = sorted({seed for line in table.lines for seed in line.validation})
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    columns = ["mean", "low", "high", "validation", "difference", "difference_low", "difference_high", "published"]
    writer.writerow([table.axis, *columns, *(f"{split}_seed{s}" for split in ("test", "validation") for s in seeds)])
    for line in table.lines:
        interval, difference = interval_of(line), line.difference
        between = [None, None] if difference is None else list(difference.interval)
        figures = [
            fmean(line.measured.values()) if line.measured else None,
            *([None, None] if interval is None else interval),
            fmean(line.validation.values()) if line.validation else None,
            None if difference is None else difference.mean,
            *between,
            line.published,
            *(split.get(seed) for split in (line.test, line.validation) for seed in seeds),
        ]
        writer.writerow([line.label, *("" if figure is None else f"{figure:.4f}" for figure in figures)])
    return stream.getvalue()


def plot(table: Table, path: Path) -> None:
    """Each seed, the mean with its interval, and the paper's figure where there is one. Raises `UserError`."""
    try:
        from matplotlib.figure import Figure  # an extra of its own: tables are written without it
    except ImportError as error:
        raise UserError(f"{path}: not drawn ({error}); pip install 'adadf_dist[tune]'") from None
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    lines = [line for line in table.lines if line.measured]
    places = [float(line.label) for line in lines] if table.numeric else [float(n) for n in range(len(lines))]
    for place, line in zip(places, lines, strict=True):
        values = list(line.measured.values())
        axes.plot(
            [place] * len(values), values, ".", color="0.2", zorder=3, label="a seed" if line is lines[0] else None
        )
        interval, mean = interval_of(line), fmean(values)
        half = 0.0 if interval is None else (interval.high - interval.low) / 2
        label = "mean, 95 %" if line is lines[0] else None
        axes.errorbar([place], [mean], yerr=[half], fmt="o", color="C0", capsize=3, label=label)
    drawn = [(place, line.published) for place, line in zip(places, lines, strict=True) if line.published is not None]
    if drawn:
        axes.plot(*zip(*drawn, strict=True), "x", color="C3", label=f"paper, {table.dataset}")
    axes.set_xticks(places, [line.label for line in lines], rotation=0 if table.numeric else 20)
    axes.set(xlabel=table.axis, ylabel=f"{table.split} accuracy, %", title=table.title)
    axes.legend(fontsize="small")
    figure.savefig(path)
    figure.savefig(path.with_suffix(".png"), dpi=200)
