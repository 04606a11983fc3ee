"""Two hosts as two network namespaces: torchrun between them, a pulled cable, a host that joins.

The settings that worked are those of `agent`; docs/faults.md says why.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.helpers.runs import ROOT, environment, records, settings, status

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PORT = 29411
REMEMBER_S = 60
"""Seconds without a sign of an agent after which the others take it for dead: longer than the cable is out."""


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True, text=True)


class Hosts:
    """Hosts 1 and 2 with addresses 10.77.0.1 and 10.77.0.2 on adadf1 and adadf2; both see the same files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.agents: list[subprocess.Popen[bytes]] = []
        for host in (1, 2):
            ip(f"netns add adadf{host}")
            ip(f"-n adadf{host} link set lo up")
        ip("link add adadf1 netns adadf1 type veth peer name adadf2 netns adadf2")
        for host in (1, 2):
            ip(f"-n adadf{host} addr add 10.77.0.{host}/24 dev adadf{host}")
        self.cable("up")

    def cable(self, state: str) -> None:
        for host in (1, 2):
            ip(f"-n adadf{host} link set adadf{host} {state}")

    def agent(self, host: int, nodes: str, values: dict[str, str]) -> None:
        """Start torchrun on a host for one rank there. Its output goes to a file."""
        conf = f"is_host={int(host == 1)},join_timeout=120,last_call_timeout=2,read_timeout={REMEMBER_S}"
        conf += f",keep_alive_interval=1,keep_alive_max_attempt={REMEMBER_S}"
        launcher = f"-m torch.distributed.run --nnodes {nodes} --nproc_per_node 1 --max-restarts 3 --rdzv-id adadf"
        launcher += f" --rdzv-backend c10d --rdzv-endpoint 10.77.0.1:{PORT} --rdzv-conf {conf}"
        launcher += f" --local-addr 10.77.0.{host} --monitor-interval 0.5"
        words = [sys.executable, *launcher.split(), "-m", "adadf_dist.train", "--preset", "rafdb"]
        words += [word for key, value in values.items() for word in (f"--{key}", value)]
        with (self.folder / f"host{host}.txt").open("ab") as file:
            self.agents.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", f"adadf{host}", *words],
                    cwd=ROOT,
                    env={
                        **environment(),
                        "GLOO_SOCKET_IFNAME": f"adadf{host}",
                        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
                    },
                    stdout=file,
                    stderr=file,
                )
            )

    def said(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("host*.txt")))

    def wait_for(self, happened: Callable[[], bool], timeout: float = 240) -> None:
        until = time.monotonic() + timeout
        while not happened():
            assert time.monotonic() < until, self.said()
            time.sleep(0.05)

    def ended(self) -> bool:
        return all(agent.poll() is not None for agent in self.agents)

    def close(self) -> None:
        for agent in self.agents:
            if agent.poll() is None:
                for process in [*psutil.Process(agent.pid).children(recursive=True), agent]:
                    process.kill()
            agent.wait()
        for host in (1, 2):
            subprocess.run(["ip", "netns", "del", f"adadf{host}"], capture_output=True)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    probe = ["ip", "netns", "add", "adadf1"]
    if os.geteuid() != 0 or subprocess.run(["which", "ip"], capture_output=True).returncode:
        pytest.skip("needs root and the ip command")
    if subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("may not make network namespaces here")
    ip("netns del adadf1")
    made = Hosts(tmp_path)
    try:
        yield made
    finally:
        made.close()


def finish(out: Path, epochs: int, hosts: Hosts, timeout: float = 240) -> None:
    """Wait for both agents; each epoch and step of the run is recorded once."""
    hosts.wait_for(hosts.ended, timeout)
    assert [agent.returncode for agent in hosts.agents] == [0, 0], hosts.said()
    assert status(out)["state"] == "finished", hosts.said()
    assert [r["epoch"] for r in records(out, "epoch")] == list(range(1, epochs + 1))
    assert [r["step"] for r in records(out, "steps")] == list(range(1, 4 * epochs + 1))


def test_two_hosts_train_together(hosts: Hosts, faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for host in (1, 2):
        hosts.agent(host, "2", settings(faces, out))
    finish(out, 2, hosts)
    assert "ranks: 2 on cpu" in hosts.said()


def test_run_survives_a_pulled_cable(hosts: Hosts, faces: Path, tmp_path: Path) -> None:
    """Both ranks give up within `runtime.timeout_s`; the agents survive and restart both."""
    out = tmp_path / "out"
    values = settings(faces, out, epochs="3", runtime__timeout_s="8", checkpoint__save_every_steps="1")
    for host in (1, 2):
        hosts.agent(host, "2", values)
    hosts.wait_for(lambda: len(records(out, "steps")) >= 6)
    hosts.cable("down")
    cut_at = time.monotonic()
    hosts.wait_for(lambda: hosts.said().count("lost contact with another rank") == 2, timeout=30)
    assert time.monotonic() - cut_at < 20
    assert hosts.said().count("no progress for") == 2
    time.sleep(5)
    hosts.cable("up")
    finish(out, 3, hosts)
    assert "resuming from" in hosts.said()


def test_second_host_joins_elastic_run(hosts: Hosts, faces: Path, tmp_path: Path) -> None:
    """Elastic: one host starts alone, a second one joins, both restart as two ranks and finish the run."""
    out = tmp_path / "out"
    values = settings(faces, out, epochs="20", checkpoint__save_every_steps="1", runtime__timeout_s="30")
    hosts.agent(1, "1:2", values)
    hosts.wait_for(lambda: len(records(out, "steps")) >= 4)
    hosts.agent(2, "1:2", values)
    hosts.wait_for(lambda: "ranks: 2 on cpu" in hosts.said())
    assert "ranks: 1 on cpu" in hosts.said()
    finish(out, 20, hosts, timeout=400)
