"""Command line of the preflight checks: `python -m adadf_dist.check` takes the same options as the training run."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from adadf_dist.check.communication import check_communication
from adadf_dist.check.dataset import check_loader, check_read_rate, check_schedule, inspect_dataset, with_largest_batch
from adadf_dist.check.dry_run import dry_run
from adadf_dist.check.environment import (
    check_clocks,
    check_threads,
    check_versions,
    clock_offsets,
    gather_rank_info,
    judge_ranks,
    judge_workers,
)
from adadf_dist.check.results import CheckReport, describe_error
from adadf_dist.check.run_dir import check_folder
from adadf_dist.check.throughput import check_batch, check_step, estimate_duration
from adadf_dist.config.load import DRY_RUN, parse_cli, split_dry_run
from adadf_dist.config.schema import Config
from adadf_dist.console.exit import cli_errors
from adadf_dist.distributed.environment import rank_from_env
from adadf_dist.distributed.world import World, init_world
from adadf_dist.errors import UserError
from adadf_dist.findings import Finding, Severity
from adadf_dist.training.setup import resolve_auto

HELP = """\
usage: python -m adadf_dist.check [--dry-run] [any option of python -m adadf_dist.train]

Preflight checks: inspect the environment and estimate whether a run would succeed. Takes at most two minutes.
Start it exactly like the run, with check instead of train:

  python -m adadf_dist.check --preset rafdb --data.shards data/rafdb
  torchrun --standalone --nproc_per_node 8 -m adadf_dist.check --preset affectnet7 --data.shards DIR --out runs/long
  torchrun --nnodes 4 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint HOST:29500 -m adadf_dist.check ...

  --dry-run    Print only the resolved plan and a cost estimate from one synthetic step, like
               python -m adadf_dist.train --dry-run.

Lines of the report:
  versions     same code, torch and Python on every node; settings that differ between ranks
  ranks        ranks, hosts and devices, and unused GPUs
  threads      threads and data workers compared with CPU cores
  workers      whether data workers can start (temporary folder)
  clocks       clock offsets between hosts
  control      latency of a control-group barrier
  all-reduce   gradient all-reduce of a small and a large message
  shards       whether every rank can read the dataset; downloads a few megabytes if it is remote
  schedule     number of steps in the run, and settings that do not suit its length
  reading      how fast one process reads and decodes random samples
  loader       samples per second of the data loader, as in training
  batch        samples of the global batch per rank, and the maximum number of ranks
  run folder   writable, shared by all nodes, enough space for checkpoints; its current content
  step         one training step with the configured batch, without runtime.compile
  memory       peak memory of the step
  time         estimated time of an epoch and of the run, from the step and the loader

Each line starts with ok, warning or error. If there is a suggested fix, it follows on the next line.
Exit status: 0 ok, 1 warnings, 2 errors. (torchrun exits with 1 for any non-zero status.)
It trains nothing, generates no samples, and leaves no files behind.
All configuration keys: python -m adadf_dist.train --help"""

TIMEOUT_S = 120.0
"""Seconds after which an unresponsive rank counts as lost."""


def run(config: Config) -> Severity:
    """Run all checks and print the report on rank 0. Returns the worst severity on rank 0, and `OK` on other ranks."""
    report = CheckReport(printed=rank_from_env() == 0)
    try:
        with init_world(min(config.runtime.timeout_s, TIMEOUT_S), finish_steps=False) as world:
            examine(config, world, report)
            report.close()
            world.barrier()  # a launcher kills all ranks once one fails; print the report first
    except (ValueError, RuntimeError, OSError) as error:  # the ranks are out of sync; stop here
        if not report.printed:
            raise UserError(describe_error(error)) from None
        report.add(Finding(report.current, Severity.ERROR, describe_error(error)))
        report.close()
    return report.worst if report.printed else Severity.OK


def examine(config: Config, world: World, report: CheckReport) -> None:
    """Run all checks in order. Collective: every rank must call this, and all ranks take the same branches."""
    report.current = "versions"
    mismatches = list(check_versions(config, world))
    report.add(*mismatches)
    if any(finding.severity is Severity.ERROR for finding in mismatches):
        return  # the other checks need identical versions and settings
    ranks = gather_rank_info(world)
    labels = [rank.label for rank in ranks]
    report.add(judge_ranks(ranks), check_threads(ranks, config.data.num_workers))
    if world.size > 1:
        report.announce("network", "clock offsets, barrier latency, and all-reduce of a small and a large message")
        report.add(check_clocks(clock_offsets(world), labels))
    report.add(*check_communication(world))
    report.current = "settings"
    config = resolve_auto(config, world)
    report.add(judge_workers(ranks, config))
    report.current = "shards"
    dataset, line = inspect_dataset(config, world)
    report.add(line)
    if dataset is not None:
        report.add(*check_schedule(config, dataset))
    samples_per_s = 0.0
    if dataset is not None and dataset.is_local:
        report.announce("reading", "read and decode rates")
        report.add(check_read_rate(config, world, labels))
        report.announce("loader", f"the {config.data.loader} loader with the run's batch size and augmentation")
        samples_per_s, line = check_loader(config, world, labels)
        report.add(line)
    report.current = "run folder"
    report.add(check_folder(config, world, dataset.classes if dataset else 7, dataset.train if dataset else 0))
    if dataset is None:
        return
    line = check_batch(config, world, dataset)
    report.add(line)
    if line.severity is Severity.ERROR:
        return
    config = with_largest_batch(config, dataset, world)
    report.announce("step", f"training steps of {config.batch_size} samples, first on each rank alone")
    measured, lines = check_step(config, world, ranks, dataset)
    report.add(*lines)
    if measured is not None:
        report.add(*estimate_duration(config, dataset, measured, samples_per_s))


def main(argv: Sequence[str] | None = None) -> None:
    only_plan, words = split_dry_run(sys.argv[1:] if argv is None else argv)
    if any(word in ("-h", "--help") for word in words):
        print(HELP)
        return
    with cli_errors("adadf_dist.check", rank_from_env(), "report"):
        if only_plan:
            dry_run(words)
            return
        worst = run(parse_cli(words, [DRY_RUN]))
    raise SystemExit(worst.exit_status)


if __name__ == "__main__":
    main()
