"""Measure the worker processes of the torch loader: startup time, memory, and batch transfer through a pipe.

    python -m benchmarks.measure_workers    # about a minute; prints the table of docs/loaders.md

Every round runs in its own process, so that each starts its own fork server. Results are medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from adadf_dist.data.workers.pass_pool import WorkerPool

COUNTS = (1, 2, 4)
BATCH = (256, 3, 112, 112)
"""Shape of a batch of 8-bit pixels as workers send it, 9.6 MB."""
BATCHES = 100
ROUNDS = 3


@dataclass(frozen=True)
class SendBatches:
    """Task of a worker: yields its process ID, then `batches` identical batches."""

    batches: int

    def __call__(self, state: None) -> Iterator[Any]:
        yield os.getpid()
        images = np.full(BATCH, 127, dtype=np.uint8)
        for _ in range(self.batches):
            yield images


def start(count: int) -> tuple[WorkerPool[None, Any], list[psutil.Process], float]:
    """Start workers; return their pool, their processes and the seconds until all have responded."""
    started = time.perf_counter()
    pool: WorkerPool[None, Any] = WorkerPool(None, count, 1, "adadf_dist.data.loaders.torch_loader")
    processes = [psutil.Process(number) for number in pool.run([SendBatches(0)] * count)]
    return pool, processes, time.perf_counter() - started


def measure_start(count: int) -> dict[str, float]:
    """Measure the startup of workers with a new and with a running fork server, and their idle memory after a batch."""
    pool, _, cold = start(count)
    pool.close()
    pool, processes, warm = start(count)
    list(pool.run([SendBatches(1)] * count))
    memory = [process.memory_full_info() for process in processes]
    pool.close()
    return {
        f"start-up of {count}, new server, s": cold,
        f"start-up of {count}, running server, s": warm,
        f"USS per idle worker of {count}, MB": statistics.mean(found.uss for found in memory) / 1e6,
        f"RSS per idle worker of {count}, MB": statistics.mean(found.rss for found in memory) / 1e6,
    }


def measure_pipe() -> dict[str, float]:
    """Measure how fast batches from one worker are received and unpickled."""
    pool, _, _ = start(1)
    results = pool.run([SendBatches(BATCHES)])
    next(results)
    next(results)  # the worker has allocated its array
    started = time.perf_counter()
    received = sum(1 for _ in results)
    seconds = time.perf_counter() - started
    pool.close()
    return {
        "images per second through a pipe": received * BATCH[0] / seconds,
        "MB per second through a pipe": received * np.prod(BATCH) / 1e6 / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)  # workers of a round; 0: measure the pipe
    count = parser.parse_args().count
    if count is not None:
        print(json.dumps(measure_start(count) if count else measure_pipe()))
        return
    rounds: dict[str, list[float]] = {}
    for number in [*COUNTS, 0] * ROUNDS:
        command = [sys.executable, "-m", "benchmarks.measure_workers", "--count", str(number)]
        for name, value in json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout).items():
            rounds.setdefault(name, []).append(value)
    for name, values in rounds.items():
        print(f"{name:40s}{statistics.median(values):10,.2f}   ({min(values):,.2f} to {max(values):,.2f})")


if __name__ == "__main__":
    main()
