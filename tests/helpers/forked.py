"""Commands in processes forked from a server that has imported the trainer, to save start-up time.

Each has its own arguments, environment, folder and output. torchrun itself is started by tests/launch/test_launch.py.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

import torch

from tests.helpers.nodes import free_port, launcher_environment, words
from tests.helpers.runs import ROOT, environment
from tests.helpers.waiting import IdleLimit


class Start(NamedTuple):
    """A command to start."""

    arguments: Sequence[str]
    more: Mapping[str, str] = {}
    """Variables of the environment beside the usual ones."""
    folder: Path = ROOT
    module: str = "adadf_dist.train"


def train_forked(
    values: Mapping[str, str], ranks: int = 1, timeout: float = 120, module: str = "adadf_dist.train", **more: str
) -> subprocess.CompletedProcess[str]:
    """Run the trainer to its end on each of `ranks`, which share a machine. Returns the combined output, by rank."""
    port, arguments = free_port(), words(dict(values))
    launched = [one_machine(rank, port, ranks) if ranks > 1 else {} for rank in range(ranks)]
    done = finish_forked([Start(arguments, {**own, **more}, module=module) for own in launched], timeout)
    status = next((one.returncode for one in done if one.returncode), 0)
    out, err = ("".join(texts) for texts in zip(*((one.stdout, one.stderr) for one in done), strict=True))
    return subprocess.CompletedProcess(arguments, status, out, err)


def one_machine(rank: int, port: int, ranks: int) -> dict[str, str]:
    return {**launcher_environment(rank, port, ranks), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks)}


def two_nodes(
    folders: tuple[Path, Path], values: Mapping[str, str], module: str = "adadf_dist.train"
) -> list[tuple[int, str]]:
    """Exit status and output of a rank on each of two nodes, which run in separate folders."""
    port, arguments = free_port(), words(dict(values))
    starts = [Start(arguments, launcher_environment(rank, port), folder, module) for rank, folder in enumerate(folders)]
    return [(done.returncode, done.stdout + done.stderr) for done in finish_forked(starts)]


def finish_forked(starts: Sequence[Start], timeout: float = 120) -> list[subprocess.CompletedProcess[str]]:
    """Run commands side by side to their ends, unless all are idle for `timeout` seconds.

    As a launcher does, the others are terminated when one fails, if they do not end by themselves.
    """
    context = multiprocessing.get_context("forkserver")
    with tempfile.TemporaryDirectory() as name:
        outputs = [Path(name) / str(number) for number in range(len(starts))]
        processes = [
            context.Process(target=run_command, args=(start, {**environment(), **start.more}, output))
            for start, output in zip(starts, outputs, strict=True)
        ]
        try:
            for process in processes:
                process.start()
            wait_for_all(processes, timeout)
        finally:
            for process in processes:
                process.kill()
                process.join()
            for output in outputs:  # pytest shows it with a failure
                print(*(read(output.with_suffix(end)) for end in (".out", ".err")), sep="\n")
        return [
            subprocess.CompletedProcess(
                list(start.arguments),
                process.exitcode or 0,
                read(output.with_suffix(".out")),
                read(output.with_suffix(".err")),
            )
            for start, process, output in zip(starts, processes, outputs, strict=True)
        ]


def wait_for_all(processes: Sequence[ForkServerProcess], timeout: float) -> None:
    limit = IdleLimit(timeout, [process.pid for process in processes if process.pid])
    alive, failed = list(processes), None
    while alive:
        if not wait([process.sentinel for process in alive], 1):
            limit.check("commands have not ended")
        alive = [process for process in alive if process.is_alive()]
        if failed is None and any(process.exitcode for process in processes):
            failed = IdleLimit(10, [process.pid for process in alive if process.pid])
        if failed is not None and failed.is_over():
            for process in alive:
                process.terminate()


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def run_command(start: Start, variables: Mapping[str, str], output: Path) -> None:
    """Runs in the forked process."""
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(start.folder)
    torch.set_num_threads(1)
    for end, stream in ((".out", sys.stdout), (".err", sys.stderr)):
        stream.flush()
        with output.with_suffix(end).open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    try:
        import_module(start.module).main(list(start.arguments))
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        raise SystemExit(1) from None
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
