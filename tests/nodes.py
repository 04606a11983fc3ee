"""Several nodes on one machine: torchrun agents in folders of their own, or ranks that a launcher started by hand."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.patience import communicate
from tests.runs import environment


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def words(values: dict[str, str]) -> list[str]:
    return ["--preset", "rafdb", *(word for key, value in values.items() for word in (f"--{key}", value))]


def finish_all(
    commands: Sequence[tuple[Path, list[str], dict[str, str]]], timeout: float = 120
) -> list[tuple[int, str]]:
    """Exit status and output of commands (folder, words, environment) that run side by side; none outlives this."""
    processes = [
        subprocess.Popen(
            arguments,
            cwd=folder,
            env={**environment(), **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for folder, arguments, more in commands
    ]
    found = []
    try:
        for process in processes:
            output, _ = communicate(process, timeout)
            found.append((process.returncode, output))
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()  # an agent takes its worker along
                try:
                    process.communicate(timeout=40)
                except subprocess.TimeoutExpired:
                    process.kill()
    return found


def two_nodes(
    folders: tuple[Path, Path], values: dict[str, str], module: str = "adadf_dist.train"
) -> list[tuple[int, str]]:
    """A rank on each of two torchrun agents, which run in folders of their own."""
    port = free_port()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    launcher += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    return finish_all(
        [
            (folder, [*launcher, "--node_rank", str(number), "-m", module, *words(values)], {})
            for number, folder in enumerate(folders)
        ]
    )


def by_hand(rank: int, port: int, ranks: int = 2) -> dict[str, str]:
    """What a launcher other than torchrun sets."""
    numbers = {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": "0"}
    return {**numbers, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
