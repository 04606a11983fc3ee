"""A Ray cluster of two nodes on this machine with one CPU each, observed from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table

from tests.helpers.runs import ROOT, environment

SMALL = {
    "preset": "demo",
    "data.image_size": "32",
    "data.loader": "torch",
    "data.num_workers": "0",
    "loss.epoch_threshold": "1",
    "runtime.tensorboard": "false",
    "runtime.timeout_s": "60",
}


class Nodes:
    """The head and one worker. Their processes do not know this checkout, neither by folder nor by environment."""

    def __init__(self) -> None:
        limits: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
        self.cluster = Cluster(initialize_head=True, head_node_args=limits)
        self.worker = self.cluster.add_node(**limits)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def trials_on(self, node: Any) -> set[str]:
        """Names of trials whose output is held open by a process of the node, which its raylet started."""
        try:
            processes = psutil.Process(node.all_processes["raylet"][0].process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return set()
        found = set()
        for process in processes:
            try:
                found |= {Path(f.path).parent.name for f in process.open_files() if f.path.endswith("/trial.log")}
            except psutil.Error:
                continue
        return found

    def drivers(self) -> list[psutil.Process]:
        """The processes that Tune placed: a trial itself, or the parent of its ranks."""
        found = []
        for node in (self.cluster.head_node, self.worker):
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            found += [p for p in raylet.children(recursive=True) if "ImplicitFunc" in " ".join(p.cmdline())]
        return found

    def lose_worker(self) -> None:
        self.cluster.remove_node(self.worker, allow_graceful=False)

    def busy(self) -> str:
        """What is held: resources that are not there for others, placement groups, actors. Empty when nothing is.

        Ray's own coordinator apart, of which a cluster has one from the first trial of several ranks to its end.
        """
        ray.init(address=self.address, log_to_driver=False, logging_level="error")
        try:
            total, free = ray.cluster_resources(), ray.available_resources()
            held = {name: amount - free.get(name, 0.0) for name, amount in total.items()}
            groups = [g["state"] for g in placement_group_table().values() if g["state"] != "REMOVED"]
            actors = ray._private.state.actors().values()
            alive = [actor["ActorClassName"] for actor in actors if actor["State"] != "DEAD"]
            alive = [name for name in alive if name != "_AutoscalingCoordinatorActor"]
        finally:
            ray.shutdown()
        found = [f"{name}: {amount:g}" for name, amount in held.items() if amount > 1e-6 and name[:5] != "node:"]
        return ", ".join([*found, *groups, *alive])

    def assert_free(self, within: float) -> None:
        until = time.monotonic() + within
        while held := self.busy():
            assert time.monotonic() < until, f"after {within:g} s: {held}"
            time.sleep(1)


@contextmanager
def two_nodes(elsewhere: Path, patch: Any) -> Iterator[Nodes]:
    """A cluster started from `elsewhere`, without PYTHONPATH. Nothing of it is left behind."""
    patch.delenv("PYTHONPATH", raising=False)
    before = os.getcwd()
    os.chdir(elsewhere)
    try:
        nodes = Nodes()
    finally:
        os.chdir(before)
    try:
        yield nodes
    finally:
        ray.shutdown()
        nodes.cluster.shutdown()


def search_command(out: Path, values: Mapping[str, str], *flags: str) -> list[str]:
    words = [word for key, value in {**SMALL, **values, "out": str(out)}.items() for word in (f"--{key}", value)]
    return [sys.executable, "-m", "tune.search", *words, *flags]


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A search, started as a user does."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=pipe, stderr=pipe, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
