"""Measure the cost of distributed training by running the same global batch on 1, 2 and more ranks of this machine."""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch

from adadf_dist.console.tables import markdown_table
from adadf_dist.data.sampling import MIN_SAMPLES_PER_RANK
from adadf_dist.errors import UserError
from adadf_dist.files.outputs import write_output
from benchmarks.machine import describe_machine
from benchmarks.scaling.comm_volume import Device, network, step_traffic
from benchmarks.scaling.cost_tables import bytes_sent
from benchmarks.scaling.worker import BenchmarkCase, Measurement
from benchmarks.step import CLASSES

USER_ERROR = 2
"""Exit status of a rank that failed with a `UserError`."""


def add_options(scaling: argparse.ArgumentParser) -> None:
    scaling.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="numbers of ranks (default: 1 2 4)")
    scaling.add_argument("--threads", type=int, default=1, help="threads per rank (default: %(default)s)")
    scaling.add_argument("--image-size", type=int, default=64, help="side in pixels (default: %(default)s)")
    scaling.add_argument("--batch-size", type=int, default=64, help="global batch size (default: %(default)s)")
    scaling.add_argument("--backbone", default="resnet18", help="model.backbone (default: %(default)s)")
    scaling.add_argument("--precision", default="auto", help="runtime.precision (default: %(default)s)")
    scaling.add_argument("--steps", type=int, default=10, help="steps per measurement (default: %(default)s)")
    scaling.add_argument("--sync-batch-norm", choices=["both", "on", "off"], default="both")
    scaling.add_argument("--timeout", type=float, default=600, help="seconds per case and round (default: %(default)s)")
    scaling.set_defaults(run=bench_scaling)


@dataclass(frozen=True)
class ScalingRound:
    """Results of one round of a case: means over ranks, in seconds and bytes."""

    step: float
    communication: float
    waiting: float
    collectives: int
    on_wire: float | None


def bench_scaling(options: argparse.Namespace) -> None:
    """Run every case once per round, interleaved, and print the medians."""
    check(options)
    cases = list(plan_cases(options))
    cases[0].config()  # validate before anything starts
    rounds: dict[BenchmarkCase, list[ScalingRound]] = {case: [] for case in cases}
    for _ in range(options.repeat):
        for case in cases:
            rounds[case].append(mean_over_ranks(run_case(case)))
    machine = describe_machine()
    print(
        f"{options.backbone} at {options.image_size}x{options.image_size}, global batch {options.batch_size}; {machine}"
    )
    print(f"medians of {options.repeat} rounds of {options.steps} steps, {options.threads} threads per rank, in ms:\n")
    for line in table(rounds):
        print(line)
    if options.json is not None:
        figures = [{**asdict(case), "rounds": [asdict(found) for found in rounds[case]]} for case in cases]
        write_output(options.json, {"machine": machine, "cases": figures})


def check(options: argparse.Namespace) -> None:
    """Raise `UserError` if an option is invalid."""
    most = max(options.ranks)
    for name in ("ranks", "threads", "steps", "repeat"):
        if (least := min(options.ranks) if name == "ranks" else getattr(options, name)) < 1:
            raise UserError(f"--{name} {least}: must be at least 1")
    if options.batch_size < MIN_SAMPLES_PER_RANK * most:
        raise UserError(f"--batch-size {options.batch_size}: {most} ranks need {MIN_SAMPLES_PER_RANK} samples each")
    if torch.cuda.is_available() and most > torch.cuda.device_count():
        raise UserError(f"--ranks {most}: each rank needs a GPU, but this machine has {torch.cuda.device_count()}")


def plan_cases(options: argparse.Namespace) -> Iterator[BenchmarkCase]:
    """Yield a case for the global batch on each number of ranks, and one for a rank's slice of it on a single rank."""
    modes = {"both": (True, False), "on": (True,), "off": (False,)}[options.sync_batch_norm]
    base = BenchmarkCase(
        ranks=1,
        threads=options.threads,
        size=options.image_size,
        batch_size=options.batch_size,
        backbone=options.backbone,
        precision=options.precision,
        sync_batch_norm=True,
        steps=options.steps,
        timeout_s=options.timeout,
    )
    for ranks in options.ranks:
        yield replace(base, batch_size=-(-options.batch_size // ranks))
        if ranks > 1:
            yield from (replace(base, ranks=ranks, sync_batch_norm=mode) for mode in modes)


def run_case(case: BenchmarkCase) -> list[Measurement]:
    """Run all ranks of a case and return their measurements in rank order. No process is left running afterward."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(case.ranks):
                processes.append(start_rank(case, rank, port, folder))
            wait_for_all(case, processes, folder)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return [
            Measurement(**json.loads((folder / f"{rank}.out").read_text(encoding="utf-8")))
            for rank in range(case.ranks)
        ]


def start_rank(case: BenchmarkCase, rank: int, port: int, folder: Path) -> subprocess.Popen[bytes]:
    """Start a rank as torchrun would, communicating over this machine's loopback device."""
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": case.ranks, "MASTER_ADDR": "127.0.0.1"}
    where |= {"MASTER_PORT": port, "OMP_NUM_THREADS": case.threads, "GLOO_SOCKET_IFNAME": "lo"}
    command = ["env", *(f"{name}={value}" for name, value in where.items()), sys.executable]
    command += ["-m", "benchmarks.scaling.worker", json.dumps(asdict(case))]
    with (folder / f"{rank}.out").open("wb") as out, (folder / f"{rank}.err").open("wb") as err:
        return subprocess.Popen(command, stdout=out, stderr=err)


def wait_for_all(case: BenchmarkCase, processes: Sequence[subprocess.Popen[bytes]], folder: Path) -> None:
    """Wait until all ranks end. Raises an error as soon as a rank fails or the timeout passes."""
    until = time.monotonic() + case.timeout_s
    while any(process.poll() is None for process in processes) and time.monotonic() < until:
        if any(process.poll() for process in processes):
            break
        time.sleep(0.05)
    for rank, process in enumerate(processes):
        if process.poll():
            text = (folder / f"{rank}.err").read_text(encoding="utf-8").strip()
            if process.returncode == USER_ERROR:
                raise UserError(f"{case.name}: {text.splitlines()[-1]}")
            raise RuntimeError(f"{case.name}: rank {rank} failed with exit status {process.returncode}:\n{text}")
    if any(process.poll() is None for process in processes):
        raise UserError(f"{case.name}: still running after {case.timeout_s:g} s; increase --timeout")


def mean_over_ranks(found: Sequence[Measurement]) -> ScalingRound:
    first = found[0]
    return ScalingRound(
        step=sum(f.step for f in found) / len(found),
        communication=sum(f.communication for f in found) / len(found),
        waiting=sum(f.waiting for f in found) / len(found),
        collectives=first.collectives,
        on_wire=first.on_wire,
    )


def table(rounds: Mapping[BenchmarkCase, Sequence[ScalingRound]]) -> Iterator[str]:
    """Yield a Markdown table with the parts of a step, the speed-up over one rank, and measured and predicted bytes."""
    heads = ["", "step", "compute", "communication", "waiting", "slice on one rank", "images/s", "speed-up", "messages"]
    rows = []
    medians = {case: median([found.step for found in cases]) for case, cases in rounds.items()}
    batch = max(case.batch_size for case in rounds)
    alone = {case.batch_size: seconds for case, seconds in medians.items() if case.ranks == 1}
    for case, found in rounds.items():
        if case.batch_size < batch:  # a slice is shown in the row of its ranks
            continue
        step = medians[case]
        communication, waiting = (median([getattr(f, part) for f in found]) for part in ("communication", "waiting"))
        times = (step, step - communication - waiting, communication, waiting, alone[-(-batch // case.ranks)])
        speed_up = f"{alone[batch] / step:.2f}" if batch in alone else ""
        cells = [*(f"{1000 * seconds:.0f}" for seconds in times), f"{batch / step:.1f}", speed_up]
        cells += [str(found[0].collectives), *bytes_on_wire(case, found)]
        rows.append([case.name, *cells])
    yield from markdown_table([*heads, "MB sent", "predicted"], rows)


def bytes_on_wire(case: BenchmarkCase, found: Sequence[ScalingRound]) -> tuple[str, str]:
    """Return the measured and the predicted MB that all ranks send per step.

    The measured value is the minimum over rounds, because other traffic can only add to it.
    """
    measured = [f.on_wire for f in found if f.on_wire is not None]
    config = case.config()
    device: Device = "cuda" if torch.cuda.is_available() else "cpu"
    model = network(config, CLASSES, frozen=False)
    paper = case.ranks * bytes_sent(step_traffic(model, config, case.ranks, device), case.ranks)
    return f"{min(measured) / 1e6:.1f}" if measured else "", f"{paper / 1e6:.1f}"
