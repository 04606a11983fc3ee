"""Two ways of training on real faces, seed by seed: by how much do they differ, and is that more than noise?"""

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
from adadf_dist.train import run
from benchmarks.machine import describe_machine

POINTS = 100
"""Of a share: what accuracies are told in."""


def add_options(paired: argparse.ArgumentParser) -> None:
    paired.add_argument("--first", required=True, metavar="WORDS", help="options of train, as one word")
    paired.add_argument("--second", required=True, metavar="WORDS", help="those of the other way")
    paired.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    paired.add_argument("--margin", type=float, default=1.5, help="points that count as equal (default: %(default)s)")
    paired.add_argument("--out", type=Path, required=True, help="folder of the runs, which go on where they stopped")
    paired.add_argument("common", nargs=argparse.REMAINDER, metavar="-- OPTIONS", help="options of train for both")
    paired.set_defaults(run=bench_paired)


def bench_paired(options: argparse.Namespace) -> None:
    """Train every pair and print the last epochs' accuracies on validation, which no choice has touched."""
    common = [word for word in options.common if word != "--"]
    if len(options.seeds) < 2:
        raise UserError("--seeds: give two or more; one pair says nothing about noise")
    ways = {name: [*common, *shlex.split(getattr(options, name))] for name in ("first", "second")}
    for words in ways.values():
        plan(words, 0, options.out)  # a wrong key is told before anything starts
    scores: dict[str, list[Score]] = {name: [] for name in ways}
    for seed in options.seeds:
        for name, words in ways.items():
            scores[name].append(train(plan(words, seed, options.out / f"{name}-seed{seed}")))
    difference = paired_difference(scores["first"], scores["second"])
    accuracies = {name: [POINTS * score.accuracy for score in found] for name, found in scores.items()}
    for name in ways:
        told = ", ".join(f"{value:.2f}" for value in accuracies[name])
        print(f"{name}: {getattr(options, name)}: {told} % on validation after the last epoch")
    low, high = (POINTS * end for end in difference.interval)
    print(f"second - first: {POINTS * difference.mean:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f}")
    low, high = (POINTS * end for end in difference.equivalence)
    verdict = "equivalent" if difference.is_equivalent(options.margin / POINTS) else "equivalence not shown"
    print(f"margin {options.margin:g} points: {verdict} (90 % interval {low:+.2f} to {high:+.2f})")
    print(describe_machine())
    if options.json is not None:
        report = {"seeds": options.seeds, "accuracy": accuracies, "difference": difference._asdict()}
        write_output(options.json, report)


def plan(words: Sequence[str], seed: int, out: Path) -> Config:
    given = ["--seed", str(seed), "--out", str(out), "--evaluation.test", "false"]
    return parse_cli([*words, *given])


def train(config: Config) -> Score:
    """The last epoch on validation. Raises `UserError` when the run was asked to stop."""
    if run(config) is None:
        raise UserError("stopped; the same command goes on from where it was")
    records = [
        json.loads(line) for line in (Path(config.out) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    last = [record for record in records if record["kind"] == "epoch"][-1]
    return Score(float(last["validation"]["accuracy"]), int(last["validation"]["samples"]))
