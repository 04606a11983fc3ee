"""The report as one self-contained HTML page: figures and images are embedded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from adadf_dist.diagnostics.run import AUXILIARY_LAGS, FindingSpan, assess, diagnose, finding_spans
from adadf_dist.diagnostics.run_length import find_problems
from adadf_dist.metrics.comparison import Verdict
from adadf_dist.report.comparison import (
    GroupComparison,
    compare_groups,
    differently_evaluated,
    differing_keys,
    has_test_result,
)
from adadf_dist.report.face_gallery import face_sections
from adadf_dist.report.figures.index import FigureSpec
from adadf_dist.report.figures.style import inline, plot_style
from adadf_dist.report.figures.tracked_sample import TrackedSample
from adadf_dist.report.run_reader import RunData
from adadf_dist.report.thumbnails import Thumbnails


def render(
    runs: Sequence[RunData], face: TrackedSample | None, drawings: Sequence[FigureSpec], pictures: Thumbnails
) -> str:
    """Render the page as HTML. All strings from a run are escaped."""
    here = Path(__file__)
    css, script = (here.with_name(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    title = escape(", ".join(run.name for run in runs[:3]))
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            '<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<title>Report: {title}</title><link rel="icon" href="data:,">',
            f"<style>\n{css}</style></head>",
            "<body><main>",
            *heading(runs, pictures),
            *comparison(runs),
            *health(runs),
            *drawn_sections(runs[0], face, drawings, pictures),
            *face_sections(runs[0], pictures),
            *settings(runs[0]),
            f"<footer>python -m adadf_dist.report {escape(' '.join(str(run.folder) for run in runs))}</footer>",
            f"</main><script>\n{script}</script></body></html>\n",
        ]
    )


def heading(runs: Sequence[RunData], pictures: Thumbnails) -> Iterator[str]:
    run = runs[0]
    yield f"<h1>{escape(run.name)}</h1>"
    faces = ", ".join(f"{count:,} {split}" for split, count in run.facts["faces"].items() if count)
    yield f'<p class="lead">{escape(str(run.facts["dataset"]))} &middot; {escape(faces)} samples &middot; '
    yield f"{len(run.classes)} classes &middot; {escape(run.config.model.backbone)} &middot; "
    yield f"seed {run.config.seed} &middot; ranks: {escape(str(run.facts['ranks']))}</p>"
    for text in other_data_notes(runs, pictures):
        yield f'<p class="progress">Warning: {escape(text)}.</p>'
    if not run.finished:
        yield f'<p class="progress">In progress: this report covers epochs 1 to {run.epoch_numbers[-1]} of '
        yield f"{run.config.epochs}.</p>"
    elif run.result is not None and not run.result["test"]:
        yield '<p class="lead">This run was not evaluated on a test split.</p>'
    yield '<ul class="tally">'
    for number, word in headline(run):
        yield f"<li><b>{number}</b><span>{word}</span></li>"
    yield "</ul>"
    if len(runs) > 1:
        yield f'<p class="note">Figures and samples below are from {escape(run.name)}, the first run, unless '
        yield "stated otherwise.</p>"


def other_data_notes(runs: Sequence[RunData], pictures: Thumbnails) -> Iterator[str]:
    """Yield warnings about replaced data, which the user allowed."""
    if pictures.other_data:
        yield f"the images are not from the data of this run, which {pictures.other_data}"
    if difference := differently_evaluated(runs):
        yield difference
    for run in runs:
        for source in run.data["earlier"] if run.data is not None else ():
            yield f"{run.name} was trained on {source['shards']} before it was resumed on other data"


def headline(run: RunData) -> Iterator[tuple[str, str]]:
    validation = run.best["validation"]
    yield percent(validation["accuracy"], validation["accuracy_interval"]), f"validation, epoch {run.best['epoch']}"
    yield f"{validation['mean_class_accuracy']:.2%}", "validation, mean class accuracy"
    if has_test_result(run) and run.result is not None:
        test = run.result["test"]
        yield (
            percent(test["accuracy"], test["accuracy_interval"]),
            f"test ({test['samples']:,} samples, best epoch)",
        )
        yield f"{test['mean_class_accuracy']:.2%}", "test, mean class accuracy"
        if test["vote_divergence"] is not None:
            yield f"{test['vote_divergence']:.3f}", "nats, KL(votes || prediction) on test"
        if test["ceiling"] is not None:
            yield f"{test['ceiling']:.2%}", "Bayes-optimal accuracy on test"
        if run.result["best_on_test"]:
            best = run.result["best_on_test"]
            yield f"{best['accuracy']:.2%}", f"best on test, epoch {best['epoch']}, selected on the test split"


def percent(share: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{share:.2%} <small>{100 * low:.2f} to {100 * high:.2f}</small>"


def comparison(runs: Sequence[RunData]) -> Iterator[str]:
    """Yield the comparison: one row per run with differing settings, and differences paired by seed."""
    if len(runs) < 2:
        return
    keys = differing_keys(runs)
    heads = ["run", "seed", *keys, "epochs", "validation, %", "mean class, %", "test, %", "mean class, %"]
    yield "<h2>Comparison</h2>"
    yield '<div class="card scroll"><table><thead><tr>' + "".join(f"<th>{escape(head)}</th>" for head in heads)
    yield "</tr></thead><tbody>"
    for number, run in enumerate(runs):
        cells = [escape(run.name), str(run.config.seed), *(escape(str(values[number])) for values in keys.values())]
        cells.append(f"{len(run.epochs)} of {run.config.epochs}")
        cells += [in_points(run.best["validation"]), f"{100 * run.best['validation']['mean_class_accuracy']:.2f}"]
        test = run.result["test"] if has_test_result(run) and run.result is not None else None
        cells += ["", ""] if test is None else [in_points(test), f"{100 * test['mean_class_accuracy']:.2f}"]
        yield f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    yield "</tbody></table></div>"
    yield '<p class="note">Selected epoch with 95% Wilson interval over samples, without the variance over '
    yield "seeds.</p>"
    pairs = compare_groups(runs)
    for pair in pairs:
        yield f'<p class="pair">{comparison_sentence(pair)}</p>'
    if len(pairs) > 1 and any(pair.difference for pair in pairs):
        yield f'<p class="note">Intervals are corrected for {len(pairs)} comparisons (Bonferroni).</p>'


def in_points(metrics: dict[str, object]) -> str:
    low, high = metrics["accuracy_interval"]  # type: ignore[misc]
    return f"{100 * float(metrics['accuracy']):.2f} <small>{100 * low:.2f} to {100 * high:.2f}</small>"  # type: ignore


VERDICTS: dict[Verdict, str] = {
    "better": "significantly better",
    "worse": "significantly worse",
    "not significant": "not significant",
    "too few to tell": "too few seeds or samples to tell",
}


def comparison_sentence(pair: GroupComparison) -> str:
    what = f"<b>{escape(pair.name)}</b>, {pair.measure} accuracy vs. the configuration of the first run: "
    difference = pair.difference
    if difference is None:
        points = 100 * (pair.second[0] - pair.first[0])
        return f"{what}{points:+.2f} points on seed {pair.seeds[0]}. One seed gives no estimate of seed variance."
    low, high = (100 * end for end in difference.interval)
    seeds = ", ".join(map(str, pair.seeds))
    text = f"{what}{100 * difference.mean:+.2f} points, 95% interval {low:+.2f} to {high:+.2f} over seeds {seeds} and "
    text += f"{difference.samples:,} samples: {VERDICTS[difference.verdict]}."
    return text if difference.paired else f"{text} Samples are not paired: the predictions of a run are missing."


def health(runs: Sequence[RunData]) -> Iterator[str]:
    """Yield the findings of each run, active ones first, and which rules were checked."""
    yield "<h2>Diagnostics</h2>"
    for run in runs:
        found = [*of_the_length(run), *auxiliary_findings(run), *finding_spans(run.epochs, run.config, run.classes)]
        if len(runs) > 1:
            yield f"<h3>{escape(run.name)}</h3>"
        for episode in found:
            yield from finding(episode, int(run.epoch_numbers[-1]))
        yield from what_was_judged(run, bool(found))


def what_was_judged(run: RunData, found: bool) -> Iterator[str]:
    """Yield which rules had enough data to be checked, and the reasons for the others."""
    judged, not_judged = assess(run.epochs, run.config, run.classes)
    judged.insert(0, "settings for the length of the run")
    if run.config.loss.supervision != "one_hot":
        if run.predictions("validation") is not None:
            judged.append("auxiliary vs. target branch")
        else:
            not_judged.append("auxiliary vs. target branch (needs the predictions of a finished run)")
    if found:
        yield f'<p class="note">Checked: {escape(", ".join(judged))}.</p>'
    else:
        yield f'<p class="fine ok">No problems found. Checked: {escape(", ".join(judged))}.</p>'
    if not_judged:
        yield f'<p class="note">Not checked: {escape("; ".join(not_judged))}.</p>'


def of_the_length(run: RunData) -> Iterator[FindingSpan]:
    """Yield settings that make no sense for the length of the run."""
    newest = run.epochs[-1]
    steps_per_epoch = round(newest.get("step", 0) / newest["epoch"])
    for problem in find_problems(run.config, steps_per_epoch) if steps_per_epoch else ():
        yield FindingSpan(problem, 1, int(run.epoch_numbers[-1]))


def finding(episode: FindingSpan, newest: int) -> Iterator[str]:
    """Yield the HTML of a finding. Resolved findings get the color of `ok`."""
    found = episode.finding
    held = f"epochs {episode.first} to {episode.last}" if episode.first != episode.last else f"epoch {episode.last}"
    kind = found.severity.word if episode.last == newest else "ok"
    word = found.severity.word if episode.last == newest else "resolved"
    yield f'<section class="finding {kind}"><header><span class="check">{word}</span>'
    yield f'<h3>{escape(found.name)}</h3><span class="when">{held}</span></header>'
    yield f'<p>{escape(found.message)}.</p><p class="hint">{escape(found.hint)}</p></section>'


def auxiliary_findings(run: RunData) -> Iterator[FindingSpan]:
    """Yield the findings that need the predictions of a finished run."""
    recorded = run.predictions("validation")
    if recorded is None or run.config.loss.supervision == "one_hot":
        return
    right = float((recorded.answers.auxiliary_probs.argmax(axis=1) == recorded.faces.labels).mean())
    upto = [record for record in run.epochs if record["epoch"] <= run.best["epoch"]]
    for found in diagnose(upto, run.config, run.classes, right):
        if found.name == AUXILIARY_LAGS:
            yield FindingSpan(found, run.best["epoch"], int(run.epoch_numbers[-1]))


def drawn_sections(
    run: RunData, face: TrackedSample | None, drawings: Sequence[FigureSpec], pictures: Thumbnails
) -> Iterator[str]:
    with plot_style():
        for drawn in drawings:
            yield f"<h2>{escape(drawn.title)}</h2>"
            extra = picture_of(face, pictures) if drawn.name == "face" and face is not None else ""
            svg = inline(drawn.make(), drawn.name, escape(drawn.title))
            yield f'<figure class="card" id="{drawn.name}">{extra}<div class="scroll">{svg}</div>'
            yield f"<figcaption>{escape(drawn.caption)}</figcaption>"
            yield from slider(run) if drawn.name == "class_distributions" else ()
            yield "</figure>"


def picture_of(face: TrackedSample, pictures: Thumbnails) -> str:
    url = pictures.find(face.key, "train")
    if url is None:
        return f'<p class="note">{escape(pictures.missing or "image cannot be read")}</p>'
    return f'<img class="portrait" alt="{escape(face.key)}" src="{url}">'


def slider(run: RunData) -> Iterator[str]:
    """Yield the epoch slider with the class distributions of every epoch as JSON."""
    values = run.stack_history("class_distributions").round(4).tolist()
    met = run.stack_history("class_threshold_met").astype(int).tolist()
    data = {"classes": run.classes, "epochs": run.epoch_numbers.tolist(), "rows": values, "met": met}
    data["means"] = run.stack_history("class_means").round(4).tolist()
    text = json.dumps(data).replace("<", "\\u003c")
    last = len(run.epochs) - 1
    yield '<div id="forming"><div class="control"><button type="button" aria-label="play">&#9654;</button>'
    yield f'<input type="range" min="0" max="{last}" value="{last}" aria-label="epoch"><output></output></div>'
    yield '<p class="note">Bar: the class distribution; mark: the class mean.</p>'
    yield f'<div class="rows"></div><script type="application/json">{text}</script></div>'


def settings(run: RunData) -> Iterator[str]:
    text = (run.folder / "config.yaml").read_text(encoding="utf-8")
    yield '<h2>Configuration</h2><details class="card"><summary>config.yaml</summary>'
    yield f"<pre>{escape(text)}</pre></details>"
