"""Connect to a Ray cluster or start one, and compute how many trials fit on it."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import create_connection
from tempfile import TemporaryDirectory

import ray

from adadf_dist.errors import UserError, single_line

ROOT = Path(__file__).resolve().parents[2]
DRIVER_ENV = {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}
"""Environment variables that turn off Tune's table and loggers: `LiveTable` and the trials' folders replace them."""
WORKER_ENV = {"RAY_TRAIN_V2_ENABLED": "1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
"""Environment variables for workers: use Ray Train v2, and hide GPUs from trials that were assigned none."""
POLL_S = 10.0


@dataclass(frozen=True)
class TrialResources:
    """Number of workers (ranks) of a trial, and the resources of each."""

    workers: int
    cpus: float
    """CPUs per worker."""
    gpus: float
    """GPUs per worker."""

    def per_worker(self) -> dict[str, float]:
        return {name: amount for name, amount in (("CPU", self.cpus), ("GPU", self.gpus)) if amount}


@contextmanager
def connect(address: str) -> Iterator[None]:
    """Connect to the Ray cluster at `address` (empty: start a local one); disconnect when the block ends.

    Raises `UserError` if there is no cluster at the address or Ray fails to start.
    """
    for name, value in DRIVER_ENV.items():
        os.environ.setdefault(name, value)
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    code = [str(ROOT / package) for package in ("adadf_dist", "tune")]  # ship this code to every node
    try:
        check_address(address)
        with TemporaryDirectory() as empty:  # otherwise nodes import from this folder first
            ray.init(
                address=address or "local",
                runtime_env={"env_vars": WORKER_ENV, "py_modules": code, "working_dir": empty},
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=False if not address else None,
            )
    except (OSError, ValueError, RuntimeError) as error:
        if not address:
            raise UserError(f"Ray failed to start: {why_not_started(error)}") from None
        hint = "start one or remove --address"
        if "AuthToken" in str(error.__cause__):
            hint = "the cluster requires a token; set RAY_AUTH_MODE=token on this machine too"
        raise UserError(f"--address {address}: no Ray cluster found ({single_line(error, 200)}); {hint}") from None
    try:
        yield
    finally:
        ray.shutdown()


def why_not_started(error: Exception) -> str:
    """Return one line that says why Ray failed to start and how to fix it."""
    reason = single_line(error, 200)
    if "AF_UNIX" in reason:
        return (
            f"its socket path is too long ({reason}); shorten TMPDIR (or RAY_TMPDIR), for example to /tmp, or pass "
            "--local"
        )
    return f"{reason}; join a cluster with --address, or pass --local"


def check_address(address: str) -> None:
    """Raise `OSError` immediately if nothing listens at `address`; Ray itself would retry for a long time."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        with create_connection((host, int(port)), timeout=POLL_S):
            pass


def trial_resources(workers: int, cpus: float, gpus: float | None) -> TrialResources:
    """Return a trial's resources. If `gpus` is None, each worker gets one GPU if the cluster has any.

    Raises `UserError` if the amounts are invalid.
    """
    if gpus is None:
        gpus = 1.0 if resource_per_node("GPU") else 0.0
    if cpus < 0 or gpus < 0 or cpus == gpus == 0:
        raise UserError(
            f"--cpus-per-rank {cpus:g}, --gpus-per-rank {gpus:g}: a rank needs a positive number of CPUs or GPUs"
        )
    if gpus > 1 and gpus % 1:
        raise UserError(f"--gpus-per-rank {gpus:g}: must be an integer if it is greater than 1")
    if workers > 1 and gpus % 1:
        raise UserError(
            f"--gpus-per-rank {gpus:g}: a fraction requires --ranks-per-trial 1, because NCCL does "
            "not support two ranks on one GPU"
        )
    return TrialResources(workers, cpus, gpus)


def trials_at_once(share: TrialResources) -> int:
    """Return how many trials can run on the cluster at once. Raises `UserError` if not even one can."""
    for name, amount in share.per_worker().items():
        whole, largest = sum(resource_per_node(name)), max(resource_per_node(name), default=0.0)
        if amount * share.workers > whole:
            raise UserError(
                f"--ranks-per-trial {share.workers}: a trial needs {amount * share.workers:g} {name}s, but the "
                f"cluster has only {whole:g}; lower --ranks-per-trial or --{name.lower()}s-per-rank"
            )
        if amount > largest:
            raise UserError(
                f"--{name.lower()}s-per-rank {amount:g}: no node of the cluster has more than {largest:g} {name}s"
            )
    workers = sum(
        min(math.floor(node.get(name, 0.0) / amount) for name, amount in share.per_worker().items())
        for node in resources_of_nodes()
    )
    if workers < share.workers:
        raise UserError(
            f"--ranks-per-trial {share.workers}: only {workers} ranks with {share.cpus:g} CPUs and "
            f"{share.gpus:g} GPUs each fit on the cluster's nodes; lower --ranks-per-trial or the resources per rank"
        )
    return workers // share.workers


def resource_per_node(name: str) -> list[float]:
    """Return the amount of a resource on each live node that has it."""
    return [node[name] for node in resources_of_nodes() if node.get(name)]


def resources_of_nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
