"""Compare two training configurations paired by seed: difference, confidence interval and equivalence."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from adadf_dist.config.load import parse_cli
from adadf_dist.config.schema import Config
from adadf_dist.errors import UserError
from adadf_dist.files.outputs import write_output
from adadf_dist.metrics.comparison import Score, paired_difference
from adadf_dist.train import Stopped, run
from benchmarks.machine import describe_machine

POINTS = 100
"""Factor from fractions to percentage points."""


def add_options(paired: argparse.ArgumentParser) -> None:
    paired.add_argument(
        "--first",
        required=True,
        metavar="WORDS",
        help="train options of the first, in quotes",
    )
    paired.add_argument("--second", required=True, metavar="WORDS", help="train options of the second")
    paired.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    paired.add_argument("--margin", type=float, default=1.5, help="equivalence margin in points (default: %(default)s)")
    paired.add_argument("--out", type=Path, required=True, help="directory of the runs; existing runs are resumed")
    paired.add_argument("common", nargs=argparse.REMAINDER, metavar="-- OPTIONS", help="train options of both")
    paired.set_defaults(run=bench_paired)


def bench_paired(options: argparse.Namespace) -> None:
    """Train every pair and compare last-epoch validation accuracies, which involve no epoch selection."""
    common = [word for word in options.common if word != "--"]
    if len(options.seeds) < 2:
        raise UserError("--seeds: at least two are required to estimate the variance")
    ways = {name: [*common, *shlex.split(getattr(options, name))] for name in ("first", "second")}
    for words in ways.values():
        plan(words, 0, options.out)  # validate before anything starts
    scores: dict[str, list[Score]] = {name: [] for name in ways}
    for seed in options.seeds:
        for name, words in ways.items():
            scores[name].append(train(plan(words, seed, options.out / f"{name}-seed{seed}")))
    difference = paired_difference(scores["first"], scores["second"])
    accuracies = {name: [POINTS * score.accuracy for score in found] for name, found in scores.items()}
    for name in ways:
        text = ", ".join(f"{value:.2f}" for value in accuracies[name])
        print(f"{name}: {getattr(options, name)}: {text} % validation accuracy after the last epoch")
    low, high = (POINTS * end for end in difference.interval)
    print(f"second - first: {POINTS * difference.mean:+.2f} points, 95% CI {low:+.2f} to {high:+.2f}")
    low, high = (POINTS * end for end in difference.equivalence)
    verdict = "equivalent" if difference.is_equivalent(options.margin / POINTS) else "equivalence not shown"
    print(f"margin {options.margin:g} points: {verdict} (90% CI {low:+.2f} to {high:+.2f})")
    print(describe_machine())
    if options.json is not None:
        report = {"seeds": options.seeds, "accuracy": accuracies, "difference": difference._asdict()}
        write_output(options.json, report)


def plan(words: Sequence[str], seed: int, out: Path) -> Config:
    given = ["--seed", str(seed), "--out", str(out), "--evaluation.run_test", "false"]
    return parse_cli([*words, *given])


def train(config: Config) -> Score:
    """Train and return the last epoch's validation score. Raises `UserError` if the run was stopped."""
    if isinstance(run(config), Stopped):
        raise UserError("stopped. Run the same command to resume.")
    records = [
        json.loads(line) for line in (Path(config.out) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    last = [record for record in records if record["kind"] == "epoch"][-1]
    return Score(float(last["validation"]["accuracy"]), int(last["validation"]["samples"]))
