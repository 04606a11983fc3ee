"""Before a long run: `python -m adadf_dist.check`, with the options of the run. See --help."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from adadf_dist.check.communication import check_communication
from adadf_dist.check.dataset import check_loader, check_read_rate, check_schedule, inspect_dataset, with_largest_batch
from adadf_dist.check.environment import (
    check_clocks,
    check_threads,
    check_versions,
    clock_offsets,
    gather_rank_info,
    judge_ranks,
    judge_workers,
)
from adadf_dist.check.results import CheckReport, CheckResult, Status, describe_error
from adadf_dist.check.run_dir import check_folder
from adadf_dist.check.throughput import check_batch, check_step, estimate_duration
from adadf_dist.config.load import parse_cli
from adadf_dist.config.schema import Config
from adadf_dist.console.exit import cli_errors
from adadf_dist.distributed.world import World, init_world, rank_from_env
from adadf_dist.errors import UserError
from adadf_dist.training.setup import resolve_auto

HELP = """\
usage: python -m adadf_dist.check [any option of python -m adadf_dist.train]

Before a long run: what this environment is, and whether that run would go well in it. One page, two minutes at most.
Start it exactly as you will start the run, with check in the place of train:

  python -m adadf_dist.check --preset rafdb --data.shards data/rafdb
  torchrun --standalone --nproc_per_node 8 -m adadf_dist.check --preset affectnet7 --data.shards DIR --out runs/long
  torchrun --nnodes 4 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint HOST:29500 -m adadf_dist.check ...

What each line tells:
  versions     the same code, torch and Python on every node; settings, where they differ
  ranks        ranks, hosts and devices, and whether GPUs are left idle
  threads      threads and data workers against the cores
  workers      whether data workers can start: temporary folder
  clocks       how far the hosts' clocks are apart
  control      how long all ranks take to agree on something
  all-reduce   how fast gradients travel: a small and a large message
  shards       every rank can read the dataset; of a remote one a few megabytes are fetched
  schedule     steps of the run, and settings that make no sense for so many
  reading      random faces, read and decoded by one process
  loader       faces a second, as training will ask for them
  batch        how the global batch is shared out, and how many ranks it allows
  run folder   writable, seen by all nodes, with room for the checkpoints; what is in it already
  step         one training step of the configured batch, without runtime.compile
  memory       its peak
  time         an epoch and the run, as the step and the loader make expect

Each line begins with a verdict: ok, warning or error, and says how to mend what is not ok.
Exit status: 0 all is ok, 1 warnings, 2 errors. (torchrun reports any status but 0 in its own way and exits with 1.)
It trains nothing, draws no faces, and leaves nothing behind.
Every key of a run and what it means: python -m adadf_dist.train --help"""

TIMEOUT_S = 120.0
"""A rank that does not answer for so long is lost: nobody wants to wait longer for a page."""


def run(config: Config) -> Status:
    """Print the page on rank 0. Returns its worst verdict there, and `OK` on the others: one exit status is enough."""
    page = CheckReport(printed=rank_from_env() == 0)
    try:
        with init_world(min(config.runtime.timeout_s, TIMEOUT_S), finish_steps=False) as world:
            examine(config, world, page)
            page.close()
            world.barrier()  # a launcher ends all ranks as soon as one fails: not before the page is out
    except (ValueError, RuntimeError, OSError) as error:  # the ranks no longer walk in step: the page ends here
        if not page.printed:
            raise UserError(describe_error(error)) from None
        page.add(CheckResult(page.current, describe_error(error), Status.ERROR))
        page.close()
    return page.status if page.printed else Status.OK


def examine(config: Config, world: World, page: CheckReport) -> None:
    """Every look in turn. A collective: all ranks go the same way through it."""
    page.current = "versions"
    alike = list(check_versions(config, world))
    page.add(*alike)
    if any(line.mark is Status.ERROR for line in alike):
        return  # what follows is an exchange between equals
    ranks = gather_rank_info(world)
    places = [rank.label for rank in ranks]
    page.add(judge_ranks(ranks), check_threads(ranks, config.data.workers))
    if world.size > 1:
        page.announce("exchange", "clocks, decisions, and all-reduce of a small and a large message")
        page.add(check_clocks(clock_offsets(world), places))
    page.add(*check_communication(world))
    page.current = "settings"
    config = resolve_auto(config, world)
    page.add(judge_workers(ranks, config))
    page.current = "shards"
    faces, line = inspect_dataset(config, world)
    page.add(line)
    if faces is not None:
        page.add(*check_schedule(config, faces))
    faces_per_s = 0.0
    if faces is not None and faces.is_local:
        page.announce("reading", "reading and decoding faces")
        page.add(check_read_rate(config, world, places))
        page.announce("loader", f"the loader {config.data.loader}, at the run's batch and augmentation")
        faces_per_s, line = check_loader(config, world, places)
        page.add(line)
    page.current = "run folder"
    page.add(check_folder(config, world, faces.classes if faces else 7, faces.train if faces else 0))
    if faces is None:
        return
    line = check_batch(config, world, faces)
    page.add(line)
    if line.mark is Status.ERROR:
        return
    config = with_largest_batch(config, faces, world)
    page.announce("step", f"training steps of {config.batch_size} faces, first each rank alone")
    measured, lines = check_step(config, world, ranks, faces)
    page.add(*lines)
    if measured is not None:
        page.add(*estimate_duration(config, faces, measured, faces_per_s))


def main(argv: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else argv
    if any(word in ("-h", "--help") for word in words):
        print(HELP)
        return
    with cli_errors("adadf_dist.check", rank_from_env(), "report"):
        worst = run(parse_cli(words))
    raise SystemExit(int(worst))


if __name__ == "__main__":
    main()
