"""Write a reproduced table as Markdown, CSV and a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from adadf_dist.console.logs import get_logger
from adadf_dist.errors import UserError
from adadf_dist.files.atomic import write_text
from adadf_dist.metrics.intervals import Interval, PairedDifference, accuracy_interval, paired_difference
from tune.paper.grids import GRIDS, baseline_of, config_id, rows_of
from tune.paper.published import DATASETS, PAPER_RESULTS
from tune.study.scores import Split, read_score
from tune.study.study import Study
from tune.study.trial import TrialResult

logger = get_logger(__name__)

POINTS = 100


class TableRow(NamedTuple):
    """Results of one table row over all seeds, with accuracies in percent."""

    label: str
    test: dict[int, float]
    """Maps each seed to the selected epoch's test accuracy; empty without a test split. Failed runs are excluded."""
    validation: dict[int, float]
    """Maps each seed to the selected epoch's validation accuracy."""
    mean_class: dict[int, float]
    """Maps each seed to the mean class accuracy on the split that `measured` uses."""
    interval: Interval | None
    """95% confidence interval of the mean of `measured`, over seeds and samples; None for fewer than two seeds."""
    difference: PairedDifference | None
    """Accuracy difference from the baseline row, in [-1, 1]; None for the baseline or fewer than two shared seeds."""
    published: float | None
    failed: tuple[str, ...]
    """Error messages of the seeds that failed."""

    @property
    def measured(self) -> dict[int, float]:
        return self.test or self.validation


class Table(NamedTuple):
    name: str
    title: str
    axis: str
    numeric: bool
    lines: tuple[TableRow, ...]
    seeds: int
    comparisons: int
    """Number of rows compared with a baseline. With more comparisons, the intervals of the differences are wider."""
    dataset: str
    """The paper's name of the dataset; empty if the paper has no results for it."""
    reference: str
    """Description of the baseline, for the table's notes."""

    @property
    def split(self) -> str:
        return "test" if any(line.test for line in self.lines) else "validation"


def table_of(study: Study, name: str, preset: str, outcomes: Sequence[TrialResult]) -> Table:
    """Build the table from a study's ended runs."""
    base, grid = study.base, GRIDS[name]
    seeds = range(base.seed, base.seed + study.options.seeds)
    rows = rows_of(base, name)
    found: dict[int, list[TrialResult]] = {}
    for outcome in outcomes:
        if outcome.trial.seed in seeds and outcome.status:
            found.setdefault(outcome.trial.number, []).append(outcome)
    comparisons = sum(baseline_of(base, name, row) is not None for row in rows)
    published = PAPER_RESULTS[name].get(preset, {})
    lines = []
    for row in rows:
        runs = found.get(config_id(base, row), [])
        reference = baseline_of(base, name, row)
        difference = None if reference is None else difference_of(study, found.get(reference, []), runs, comparisons)
        failed = tuple(run.error for run in runs if run.error)
        measured = [read_score(study, run, measured_split(runs)) for run in finished(runs)]
        interval = accuracy_interval(measured) if len(measured) > 1 else None
        figures = (tested(runs), validated(runs), class_accuracies(runs), interval, difference)
        lines.append(TableRow(row.label, *figures, published.get(row.label), failed))
    against = "the baseline row" if any(row.against for row in rows) else "the preset's own value"
    dataset = DATASETS.get(preset, "") if published else ""
    return Table(name, grid.title, grid.axis, grid.numeric, tuple(lines), len(seeds), comparisons, dataset, against)


def finished(runs: Sequence[TrialResult]) -> list[TrialResult]:
    return [run for run in runs if run.status == "finished"]


def measured_split(runs: Sequence[TrialResult]) -> Split:
    return "test" if any(run.tested for run in finished(runs)) else "validation"


def tested(runs: Sequence[TrialResult]) -> dict[int, float]:
    return {run.trial.seed: POINTS * run.test for run in finished(runs) if run.test is not None}


def validated(runs: Sequence[TrialResult]) -> dict[int, float]:
    return {run.trial.seed: POINTS * run.best for run in finished(runs)}


def class_accuracies(runs: Sequence[TrialResult]) -> dict[int, float]:
    metrics = {run.trial.seed: run.tested or run.selected for run in finished(runs)}
    return {seed: POINTS * found["mean_class_accuracy"] for seed, found in metrics.items()}


def difference_of(
    study: Study, first: Sequence[TrialResult], second: Sequence[TrialResult], comparisons: int
) -> PairedDifference | None:
    """Return the accuracy difference `second` minus `first` on the seeds that both have; None for fewer than two.

    It is measured on the test split if both were tested, else on validation.
    """
    split: Split = "test" if measured_split(first) == measured_split(second) == "test" else "validation"
    before, after = (
        {run.trial.seed: read_score(study, run, split) for run in finished(runs)} for runs in (first, second)
    )
    both = sorted(before.keys() & after.keys())
    if len(both) < 2:
        return None
    return paired_difference([before[seed] for seed in both], [after[seed] for seed in both], comparisons)


def write_table(folder: Path, table: Table) -> str:
    """Write NAME.md, NAME.csv and NAME.svg to `folder`. Returns the Markdown."""
    text = markdown(table)
    write_text(folder / f"{table.name}.md", text)
    write_text(folder / f"{table.name}.csv", comma_separated(table))
    try:
        plot(table, folder / f"{table.name}.svg")
    except UserError as error:
        logger.warning(f"{error}")
    return text


def markdown(table: Table) -> str:
    head = [table.axis, f"{table.split} accuracy, %", "95% CI", "mean class, %", "validation, %", "difference, points"]
    head += [f"paper ({table.dataset}), %"] if table.dataset else []
    rows = [format_cells(line, bool(table.dataset)) for line in table.lines]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    notes = conclusion(table)
    if short := [line.label for line in table.lines if len(line.measured) < table.seeds]:
        notes.append(f"Missing seeds: {', '.join(short)}.")
    if failed := [f"- {line.label}: {error}" for line in table.lines for error in line.failed]:
        notes += ["", "Failed runs:", "", *failed]
    return "\n".join([f"### {table.title}", "", *lines, "", *notes]) + "\n"


def format_cells(line: TableRow, with_published: bool) -> list[str]:
    published = [f"{line.published:.2f}" if line.published is not None else "-"] if with_published else []
    if not line.measured:
        return [line.label, "-", "-", "-", "-", "-", *published]
    difference = "-"
    if line.difference is not None:
        low, high = (POINTS * end for end in line.difference.interval)
        difference = f"{POINTS * line.difference.mean:+.2f} ({low:+.2f} to {high:+.2f})"
    between = "-"
    if line.interval is not None:
        between = f"{POINTS * line.interval.low:.2f} to {POINTS * line.interval.high:.2f}"
    means = [f"{fmean(values.values()):.2f}" for values in (line.measured, line.mean_class, line.validation)]
    return [line.label, means[0], between, *means[1:], difference, *published]


def conclusion(table: Table) -> list[str]:
    """Return the table's conclusion and a description of the method, as lines."""
    verdicts = {line.label: line.difference.verdict for line in table.lines if line.difference is not None}
    significant = [label for label, found in verdicts.items() if found in ("better", "worse")]
    unclear = [label for label, found in verdicts.items() if found == "too few to tell"]
    notes = [f"Significantly different: {', '.join(significant)}." if significant else "No significant difference."]
    if unclear:
        notes.append(f"Too few seeds or samples to tell: {', '.join(unclear)}.")
    how = f"Means over {table.seeds} seeds; differences are from {table.reference}, paired by seed and sample. "
    how += "Intervals cover seed variance and the finite number of samples; those of the differences "
    how += f"hold simultaneously at 95% ({table.comparisons} comparisons)."
    paper = f"The paper reports single runs at the best test epoch; here {table.split} is evaluated once."
    return [*notes, how, *([paper] if table.dataset else [])]


def comma_separated(table: Table) -> str:
    """Format the table as CSV, including every seed's accuracies."""
    seeds = sorted({seed for line in table.lines for seed in line.validation})
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    columns = [
        "mean",
        "low",
        "high",
        "mean_class",
        "validation",
        "difference",
        "difference_low",
        "difference_high",
        "published",
    ]
    writer.writerow([table.axis, *columns, *(f"{split}_seed{s}" for split in ("test", "validation") for s in seeds)])
    for line in table.lines:
        interval, difference = line.interval, line.difference
        between = [None, None] if difference is None else [POINTS * end for end in difference.interval]
        figures = [
            fmean(line.measured.values()) if line.measured else None,
            *([None, None] if interval is None else (POINTS * end for end in interval)),
            fmean(line.mean_class.values()) if line.mean_class else None,
            fmean(line.validation.values()) if line.validation else None,
            None if difference is None else POINTS * difference.mean,
            *between,
            line.published,
            *(split.get(seed) for split in (line.test, line.validation) for seed in seeds),
        ]
        writer.writerow([line.label, *("" if figure is None else f"{figure:.4f}" for figure in figures)])
    return stream.getvalue()


def plot(table: Table, path: Path) -> None:
    """Plot every seed, the mean with its interval, and the paper's result if any.

    Raises `UserError` if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # optional: tables are written without it
    except ImportError as error:
        raise UserError(
            f"{path}: plot not written ({error}); install Matplotlib with pip install 'adadf_dist[tune]'"
        ) from None
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    lines = [line for line in table.lines if line.measured]
    xs = [float(line.label) for line in lines] if table.numeric else [float(n) for n in range(len(lines))]
    for x, line in zip(xs, lines, strict=True):
        values = list(line.measured.values())
        axes.plot([x] * len(values), values, ".", color="0.2", zorder=3, label="seed" if line is lines[0] else None)
        interval, mean = line.interval, fmean(values)
        half = 0.0 if interval is None else POINTS * (interval.high - interval.low) / 2
        label = "mean, 95% CI" if line is lines[0] else None
        axes.errorbar([x], [mean], yerr=[half], fmt="o", color="C0", capsize=3, label=label)
    published = [(x, line.published) for x, line in zip(xs, lines, strict=True) if line.published is not None]
    if published:
        axes.plot(*zip(*published, strict=True), "x", color="C3", label=f"paper, {table.dataset}")
    axes.set_xticks(xs, [line.label for line in lines], rotation=0 if table.numeric else 20)
    axes.set(xlabel=table.axis, ylabel=f"{table.split} accuracy, %", title=table.title)
    axes.legend(fontsize="small")
    figure.savefig(path)
    figure.savefig(path.with_suffix(".png"), dpi=200)
