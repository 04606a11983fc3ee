"""Several nodes on one machine, as ranks without a launcher."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.helpers.runs import environment
from tests.helpers.waiting import communicate


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def words(values: dict[str, str]) -> list[str]:
    return ["--preset", "rafdb", *(word for key, value in values.items() for word in (f"--{key}", value))]


def finish_all(
    commands: Sequence[tuple[Path, list[str], dict[str, str]]], timeout: float = 120
) -> list[tuple[int, str]]:
    """Exit status and output of commands (folder, words, environment) that run side by side; all are ended."""
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
                process.terminate()  # an agent ends its worker
                try:
                    process.communicate(timeout=40)
                except subprocess.TimeoutExpired:
                    process.kill()
    return found


def launcher_environment(rank: int, port: int, ranks: int = 2) -> dict[str, str]:
    """Environment variables that a launcher other than torchrun sets."""
    numbers = {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": "0"}
    return {**numbers, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
