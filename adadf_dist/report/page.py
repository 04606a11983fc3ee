"""The report as one self-contained HTML page: figures and images are embedded. `page.html` is its template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from adadf_dist.diagnostics.run import FindingSpan, assess, diagnose, finding_spans
from adadf_dist.diagnostics.run_length import find_problems
from adadf_dist.diagnostics.training import AUXILIARY_LAGS
from adadf_dist.html.render import render_page
from adadf_dist.metrics.intervals import Verdict
from adadf_dist.report.comparison import GroupComparison, compare_groups, differently_evaluated, differing_keys
from adadf_dist.report.figures.index import FigureSpec
from adadf_dist.report.figures.style import inline, plot_style
from adadf_dist.report.figures.tracked_sample import TrackedSample
from adadf_dist.report.gallery import Thumbnails, gallery_sections
from adadf_dist.report.run_reader import RunData


def render(
    runs: Sequence[RunData], sample: TrackedSample | None, specs: Sequence[FigureSpec], thumbnails: Thumbnails
) -> str:
    """Return the page as HTML."""
    run = runs[0]
    pairs = compare_groups(runs)
    return render_page(
        Path(__file__).with_name("page.html"),
        title=f"Report: {', '.join(run.name for run in runs[:3])}",
        command=f"python -m adadf_dist.report {' '.join(str(run.folder) for run in runs)}",
        run=run,
        runs=runs,
        sizes=", ".join(f"{count:,} {split}" for split, count in run.info["faces"].items() if count),
        warnings=list(other_data_notes(runs, thumbnails)),
        tests=[run.test for run in runs],
        differing=differing_keys(runs),
        pairs=[(pair.name, describe_comparison(pair)) for pair in pairs],
        corrected=len(pairs) > 1 and any(pair.difference for pair in pairs),
        health=[summarize_findings(run) for run in runs],
        figures=render_figures(specs),
        tracked_key=sample.key if sample is not None else "",
        portrait=thumbnails.find(sample.key, "train") if sample is not None else None,
        slider=slider_data(run) if any(spec.name == "class_distributions" for spec in specs) else None,
        gallery=gallery_sections(run, thumbnails),
        missing=thumbnails.missing,
        configuration=(run.folder / "config.yaml").read_text(encoding="utf-8"),
    )


def other_data_notes(runs: Sequence[RunData], thumbnails: Thumbnails) -> Iterator[str]:
    """Yield warnings about data that differs from a run's own data, which the user allowed."""
    if thumbnails.other_data:
        yield f"the images are not from the dataset of this run, which {thumbnails.other_data}"
    if difference := differently_evaluated(runs):
        yield difference
    for run in runs:
        for source in run.data["earlier"] if run.data is not None else ():
            yield f"{run.name} was trained on {source['shards']} before it was resumed on other data"


VERDICTS: dict[Verdict, str] = {
    "better": "significantly better",
    "worse": "significantly worse",
    "not significant": "not significant",
    "too few to tell": "too few seeds or samples to tell",
}


def describe_comparison(pair: GroupComparison) -> str:
    what = f"{pair.measure} accuracy vs. the configuration of the first run: "
    difference = pair.difference
    if difference is None:
        points = 100 * (pair.second[0] - pair.first[0])
        return f"{what}{points:+.2f} points on seed {pair.seeds[0]}. One seed gives no variance estimate."
    low, high = (100 * end for end in difference.interval)
    seeds = ", ".join(map(str, pair.seeds))
    text = f"{what}{100 * difference.mean:+.2f} points, 95% interval {low:+.2f} to {high:+.2f} over seeds {seeds} and "
    text += f"{difference.samples:,} samples: {VERDICTS[difference.verdict]}."
    return text if difference.paired else f"{text} Samples could not be paired, because a run has no saved predictions."


def summarize_findings(run: RunData) -> dict[str, Any]:
    """Return the findings of a run, active ones first, and which rules were checked."""
    spans = [*find_length_problems(run), *find_lagging_branch(run), *finding_spans(run.epochs, run.config, run.classes)]
    checked, not_checked = assess(run.epochs, run.config, run.classes)
    checked.insert(0, "settings for the length of the run")
    if not run.config.loss.is_baseline:
        if run.predictions("validation") is not None:
            checked.append("auxiliary vs. target branch")
        else:
            not_checked.append("auxiliary vs. target branch (needs the predictions of a finished run)")
    return {
        "run": run.name,
        "spans": spans,
        "newest": run.epoch_numbers[-1],
        "checked": f"{'' if spans else 'No problems found. '}Checked: {', '.join(checked)}.",
        "not_checked": f"Not checked: {'; '.join(not_checked)}." if not_checked else "",
    }


def find_length_problems(run: RunData) -> Iterator[FindingSpan]:
    """Yield findings about settings that do not suit the length of the run."""
    newest = run.epochs[-1]
    steps_per_epoch = round(newest.get("step", 0) / newest["epoch"])
    for problem in find_problems(run.config, steps_per_epoch) if steps_per_epoch else ():
        yield FindingSpan(problem, 1, int(run.epoch_numbers[-1]))


def find_lagging_branch(run: RunData) -> Iterator[FindingSpan]:
    """Yield a finding if the auxiliary branch lags behind the target branch. Needs saved predictions."""
    saved = run.predictions("validation")
    if saved is None or run.config.loss.is_baseline:
        return
    accuracy = float((saved.answers.auxiliary_probs.argmax(axis=1) == saved.faces.labels).mean())
    records = [record for record in run.epochs if record["epoch"] <= run.best["epoch"]]
    for finding in diagnose(records, run.config, run.classes, accuracy):
        if finding.name == AUXILIARY_LAGS:
            yield FindingSpan(finding, run.best["epoch"], int(run.epoch_numbers[-1]))


def render_figures(specs: Sequence[FigureSpec]) -> list[dict[str, Any]]:
    """Return the figures as inline SVG."""
    with plot_style():
        return [{**spec._asdict(), "svg": inline(spec.make(), spec.name, spec.title)} for spec in specs]


def slider_data(run: RunData) -> dict[str, Any]:
    """Return the data for the epoch slider: the class distributions after every epoch."""
    return {
        "classes": run.classes,
        "epochs": run.epoch_numbers.tolist(),
        "rows": run.stack_history("class_distributions").round(4).tolist(),
        "met": run.stack_history("class_threshold_met").astype(int).tolist(),
        "means": run.stack_history("class_means").round(4).tolist(),
    }
