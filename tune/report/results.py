"""Write the result files of a search (trials.csv, trials.parquet, best.toml) and describe its results."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from adadf_dist.config.keys import flatten
from adadf_dist.config.load import override, to_dict
from adadf_dist.config.schema import Config
from adadf_dist.errors import UserError
from adadf_dist.files.atomic import atomic_write, write_text
from tune.study.selection import Candidate, Selection
from tune.study.study import Study
from tune.study.trial import DEFAULT, Trial, TrialResult


def write_trials(study: Study, outcomes: Sequence[TrialResult]) -> None:
    """Write trials.csv and trials.parquet, with one row per trial for its settings and result."""
    rows = [row_of(study, outcome) for outcome in outcomes]
    if not rows:
        return
    table = pa.Table.from_pylist(rows)
    for name, write in (("trials.csv", pyarrow.csv.write_csv), ("trials.parquet", pyarrow.parquet.write_table)):
        with atomic_write(study.folder / name) as partial:
            write(table, str(partial))


def row_of(study: Study, outcome: TrialResult) -> dict[str, Any]:
    trial = outcome.trial
    return {
        "trial": trial.name,
        "configuration": trial.number,
        "seed": trial.seed,
        "stage": trial.stage,
        **{key: column(value) for key, value in study.full_values(trial).items()},
        "status": outcome.status,
        "epochs": outcome.epochs,
        "accuracy": outcome.best if outcome.epochs else None,
        "mean_class_accuracy": outcome.mean_class_accuracy,
        "last_accuracy": outcome.accuracies[-1] if outcome.epochs else None,
        "test_accuracy": outcome.test,
        "test_mean_class_accuracy": outcome.tested.get("mean_class_accuracy"),
        "folder": str(study.trials.path_of(trial).relative_to(study.folder)),
        "error": outcome.error,
    }


def column(value: Any) -> Any:
    """Convert a value for a table column; a list becomes JSON text."""
    return json.dumps(value) if isinstance(value, (list, tuple)) else value


def write_best(study: Study, choice: Selection, values: Mapping[str, Any]) -> Path:
    """Write best.toml for `adadf_dist.train --config`, with the searched keys and all other non-default values."""
    config = override(study.base, {**values, "evaluation.run_test": True})
    comments = [f"# {line}" for line in describe(choice)]
    path = study.folder / "best.toml"
    write_text(path, "\n".join([*comments, *toml_of(config, study.space.domains)]) + "\n")
    return path


def describe(choice: Selection) -> list[str]:
    """Return the search's verdict and the results that support it, as lines to print."""
    table = [describe_candidate(candidate) for candidate in choice.candidates]
    collapsed = [
        f"{name_of(candidate.number)} collapsed ({candidate.collapse})"
        + ("" if candidate.number == DEFAULT else ", so it cannot win")
        for candidate in choice.candidates
        if candidate.collapse
    ]
    verdict = conclude(choice)
    if choice.too_few:
        verdict += f": {describe_precision(choice)}; keeping the default"
    return [verdict, *collapsed, *table]


def conclude(choice: Selection) -> str:
    """Return the search's verdict as one sentence."""
    if choice.improved:
        return f"configuration {choice.winner} is significantly better than the default (95%, seeds and samples)"
    if choice.too_few:
        return "too few seeds or samples to tell whether a configuration is better than the default"
    return "no configuration is significantly better than the default; keeping the default"


def describe_precision(choice: Selection) -> str:
    """Describe which differences are too small to detect and how to detect them."""
    found = [c.difference for c in choice.candidates if c.difference is not None and not c.collapse]
    best = min(found, key=lambda difference: difference.interval.high - difference.interval.low)
    points = 50 * (best.interval.high - best.interval.low)
    text = f"with {best.seeds} seeds and {best.samples:,} validation samples, differences below {points:.0f} points "
    return text + "are undetectable; raise --num-seeds or use a larger validation split"


def name_of(number: int) -> str:
    return "default" if number == DEFAULT else f"configuration {number}"


def describe_plan(study: Study) -> str:
    options, halving = study.options, study.options.halving
    line = f"{study.folder}: {options.trials} configurations and the default on seed {study.base.seed}, "
    line += f"then the best {options.finalists} and the default on {options.seeds} held-out seeds; "
    if halving is None:
        return line + "no early stopping"
    if not halving.rungs:
        return line + f"no early stopping: grace period {halving.grace} >= {halving.epochs} epochs"
    return line + f"ASHA rungs at epochs {', '.join(map(str, halving.rungs))} of {halving.epochs}"


def describe_test(study: Study, tested: Trial) -> str:
    outcome = study.trials.result(tested)
    if outcome.status != "finished":
        raise UserError(f"{tested.name}: not tested ({outcome.error or 'interrupted'}); rerun the search with --resume")
    if outcome.test is None:
        return "the dataset has no test split; the winner was not tested"
    line = f"test accuracy (seed {tested.seed}): {outcome.test:.2%}"
    if (mean := outcome.tested.get("mean_class_accuracy")) is not None:
        line += f", mean class accuracy {mean:.2%}"
    others = [o.trial.name for o in study.trials.outcomes() if o.trial.test and o.trial.name != tested.name]
    if others:
        line += f"\nwarning: the test split was already used by {', '.join(others)}"
    return line


def describe_candidate(candidate: Candidate) -> str:
    low, high = candidate.interval
    line = f"{name_of(candidate.number)}: {candidate.mean:.2%} on {len(candidate.accuracies)} seeds "
    line += f"(95% CI {low:.2%} to {high:.2%})"
    if candidate.mean_class_accuracy is not None:
        line += f", mean class accuracy {candidate.mean_class_accuracy:.2%}"
    if candidate.difference is not None:
        low, high = (100 * end for end in candidate.difference.interval)
        line += f", {100 * candidate.difference.mean:+.2f} points vs. the default ({low:+.2f} to {high:+.2f})"
        if not candidate.difference.paired:
            line += ", samples not paired (predictions missing)"
    return line


def toml_of(config: Config, keys: Collection[str] = ()) -> list[str]:
    """Return TOML lines for all non-default keys and for `keys`, except `out` and `seed`."""
    defaults = dict(flatten(to_dict(Config())))
    changed = {
        k: v for k, v in flatten(to_dict(config)) if (v != defaults[k] or k in keys) and k not in ("out", "seed")
    }
    top = {key: value for key, value in changed.items() if "." not in key}
    lines = [f"{key} = {toml_value(value)}" for key, value in top.items()]
    for section in dict.fromkeys(key.partition(".")[0] for key in changed if "." in key):
        lines += ["", f"[{section}]"]
        inner = {k.partition(".")[2]: v for k, v in changed.items() if k.startswith(f"{section}.")}
        lines += [f"{key} = {toml_value(value)}" for key, value in inner.items()]
    return lines


def toml_value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)
