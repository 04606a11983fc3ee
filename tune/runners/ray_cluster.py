"""A Ray cluster, joined or started, and how many trials it holds."""

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
"""Our table is the table, the trials' folders are the records."""
WORKER_ENV = {"RAY_TRAIN_V2_ENABLED": "1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
"""A trial that was given no GPU sees none."""
LOOK_S = 10.0


@dataclass(frozen=True)
class TrialResources:
    """What a trial takes."""

    workers: int
    cpus: float
    """Of each worker."""
    gpus: float
    """Of each worker."""

    def per_worker(self) -> dict[str, float]:
        return {name: amount for name, amount in (("CPU", self.cpus), ("GPU", self.gpus)) if amount}


@contextmanager
def connect(address: str) -> Iterator[None]:
    """The cluster at `address`, or one started here for as long as this lasts. Raises `UserError`."""
    for name, value in DRIVER_ENV.items():
        os.environ.setdefault(name, value)
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    code = [str(ROOT / package) for package in ("adadf_dist", "tune")]  # so that every node runs this very code
    try:
        check_address(address)
        with TemporaryDirectory() as empty:  # else the nodes would look in this folder first, whatever lies there
            ray.init(
                address=address or "local",
                runtime_env={"env_vars": WORKER_ENV, "py_modules": code, "working_dir": empty},
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=False if not address else None,
            )
    except (OSError, ValueError, RuntimeError) as error:
        if not address:
            raise UserError(f"Ray could not be started here: {why_not_started(error)}") from None
        mend = "start one or leave it out"
        if "AuthToken" in str(error.__cause__):
            mend = "it asks for a token: set RAY_AUTH_MODE=token here as it was set there"
        raise UserError(f"--address {address}: no Ray cluster there ({single_line(error, 200)}); {mend}") from None
    try:
        yield
    finally:
        ray.shutdown()


def why_not_started(error: Exception) -> str:
    """In one line, with what to do about it."""
    reason = single_line(error, 200)
    if "AF_UNIX" in reason:
        return (
            f"the path of its sockets is too long ({reason}); shorten TMPDIR (or RAY_TMPDIR), for example to /tmp, or "
            "give --local"
        )
    return f"{reason}; join a cluster with --address, or give --local"


def check_address(address: str) -> None:
    """Raises `OSError` where nothing listens, which Ray would try to reach for long."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        with create_connection((host, int(port)), timeout=LOOK_S):
            pass


def trial_resources(workers: int, cpus: float, gpus: float | None) -> TrialResources:
    """`gpus` None: one a worker where the cluster has any. Raises `UserError` for what cannot be given."""
    if gpus is None:
        gpus = 1.0 if resource_per_node("GPU") else 0.0
    if cpus < 0 or gpus < 0 or cpus == gpus == 0:
        raise UserError(
            f"--cpus-per-worker {cpus:g}, --gpus-per-worker {gpus:g}: a worker takes something of one of them"
        )
    if gpus > 1 and gpus % 1:
        raise UserError(f"--gpus-per-worker {gpus:g}: more than one GPU are whole GPUs")
    if workers > 1 and gpus % 1:
        raise UserError(
            f"--gpus-per-worker {gpus:g}: NCCL refuses two ranks on one GPU; a fraction is for trials of one worker"
        )
    return TrialResources(workers, cpus, gpus)


def trials_at_once(share: TrialResources) -> int:
    """Trials that the cluster holds, node by node. Raises `UserError` when it holds none."""
    for name, amount in share.per_worker().items():
        whole, largest = sum(resource_per_node(name)), max(resource_per_node(name), default=0.0)
        if amount * share.workers > whole:
            raise UserError(
                f"--workers-per-trial {share.workers}: a trial takes {amount * share.workers:g} {name}s, the cluster "
                f"has {whole:g}; lower it, or --{name.lower()}s-per-worker"
            )
        if amount > largest:
            raise UserError(
                f"--{name.lower()}s-per-worker {amount:g}: no node of the cluster has more than {largest:g} {name}s"
            )
    workers = sum(
        min(math.floor(node.get(name, 0.0) / amount) for name, amount in share.per_worker().items())
        for node in resources_of_nodes()
    )
    if workers < share.workers:
        raise UserError(
            f"--workers-per-trial {share.workers}: the cluster's nodes hold {workers} workers of {share.cpus:g} CPUs "
            f"and {share.gpus:g} GPUs; lower one of them"
        )
    return workers // share.workers


def resource_per_node(name: str) -> list[float]:
    """What each node that is there has of a resource; nodes without are left out."""
    return [node[name] for node in resources_of_nodes() if node.get(name)]


def resources_of_nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
