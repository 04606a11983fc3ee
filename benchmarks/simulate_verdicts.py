"""Estimate by simulation how often a search finds a false or a true improvement.

    python -m benchmarks.simulate_verdicts    # 2 to 6 minutes on one core; prints the tables of docs/statistics.md

A simulated search has a default and finalists, trained on the same seeds and evaluated on the same samples. A run
classifies a sample correctly if this sum is positive: the sample's easiness, the configuration's bias on the sample,
the run's noise on the sample, and the run's skill, which varies with the seed. Equal configurations have the same mean
skill, so each verdict "better" about them is a false positive.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from adadf_dist.metrics.intervals import Score, paired_difference

EASE = (1.0, 2.2)
"""Mean and standard deviation of the samples' easiness, with which runs classify about two thirds correctly."""
SEED_SD = (0.0, 0.05, 0.15)
"""Standard deviations of skill over seeds; 0.15 is about 2 points of accuracy."""
NOISE_SD = (0.3, 1.0)
"""Standard deviations of bias plus noise per sample, with which configurations differ on about 5% or 17% of samples."""
SIZES = (69, 400, 4000)
SEEDS = (2, 3, 5)
GAINS = {"+2 points": 0.14, "+4 points": 0.28, "+8 points": 0.58}
"""Gains in skill, by the gain in accuracy that they cause."""


class Case(NamedTuple):
    samples: int
    seeds: int
    finalists: int
    seed_sd: float
    noise_sd: float
    gain: float = 0.0
    """How much more skill every finalist has than the default."""


class Rates(NamedTuple):
    """Fractions of searches that report at least one finalist as better than the default."""

    paired: float
    unpaired: float
    """The fraction for the same searches if predictions are not stored, so samples cannot be paired."""


def simulate(case: Case, generator: np.random.Generator) -> list[list[Score]]:
    """Return the scores of the default and of each finalist, one list per configuration with one score per seed."""
    ease = generator.normal(*EASE, case.samples)
    runs = []
    for number in range(1 + case.finalists):
        habit, noise = (
            generator.normal(0, case.noise_sd / np.sqrt(2), shape)
            for shape in (case.samples, (case.seeds, case.samples))
        )
        skill = generator.normal(0, case.seed_sd, (case.seeds, 1)) + (case.gain if number else 0.0)
        correct = ease + habit + noise + skill > 0
        runs.append([Score(float(row.mean()), case.samples, row) for row in correct])
    return runs


def finds_better(runs: list[list[Score]]) -> bool:
    """Return whether any finalist is reported as better than the default, using the comparison of `tune.search`."""
    return any(paired_difference(runs[0], scores, len(runs) - 1).verdict == "better" for scores in runs[1:])


def measure_rates(case: Case, searches: int, seed: int) -> Rates:
    generator = np.random.default_rng([seed, *(round(1000 * value) for value in case)])
    paired = unpaired = 0
    for _ in range(searches):
        runs = simulate(case, generator)
        paired += finds_better(runs)
        unpaired += finds_better([[score._replace(correct=None) for score in scores] for scores in runs])
    return Rates(paired / searches, unpaired / searches)


def equal_configurations(samples: int, seeds: int) -> Iterator[Case]:
    for seed_sd in SEED_SD:
        for noise_sd in NOISE_SD:
            yield Case(samples, seeds, 3, seed_sd, noise_sd)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=2000, help="simulated searches per case (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    options = parser.parse_args()
    print("False positive rate with three equal configurations, %: worst of six cases (mean)\n")
    print("| samples | seeds | predictions stored | accuracies only |\n|--:|--:|--:|--:|")
    sizes = [(samples, seeds) for samples in SIZES for seeds in SEEDS]
    for samples, seeds in sizes:
        found = [measure_rates(case, options.searches, options.seed) for case in equal_configurations(samples, seeds)]
        cells = [f"{100 * max(rates):.1f} ({100 * np.mean(rates):.1f})" for rates in zip(*found, strict=True)]
        print(f"| {samples:,} | {seeds} | {' | '.join(cells)} |", flush=True)
    print("\nPower: searches that detect one configuration with a true gain, predictions stored, %\n")
    print(f"| samples | seeds | {' | '.join(GAINS)} |\n|--:|--:|{'--:|' * len(GAINS)}")
    for samples, seeds in sizes:
        cases = [Case(samples, seeds, 1, 0.05, 1.0, gain) for gain in GAINS.values()]
        powers = [measure_rates(case, options.searches // 4, options.seed).paired for case in cases]
        print(f"| {samples:,} | {seeds} | {' | '.join(f'{100 * power:.0f}' for power in powers)} |", flush=True)


if __name__ == "__main__":
    main()
