"""The scripts and example files in launch/ (test_slurm has the SLURM script): commands and user errors."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from torch.distributed.run import get_args_parser

from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.engine.deepspeed_config import make_deepspeed_config
from tests.helpers.cluster_stubs import LAUNCH, TIMEOUT_S, Cluster
from tests.helpers.nodes import free_port
from tests.helpers.runs import ROOT, environment, records, settings, status
from tests.helpers.waiting import communicate, wait_until

SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_valid_bash(path: Path) -> None:
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    assert os.access(path, os.X_OK) or path.suffix == ".sbatch"
    if shutil.which("shellcheck"):
        checked = subprocess.run(["shellcheck", path], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_help_needs_no_setup(path: Path) -> None:
    bare = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", path, "--help"], env=bare, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"launch/{path.name}" in done.stdout


def test_torchrun_command_on_one_node(cluster: Cluster) -> None:
    done = cluster.script("torchrun.sh", "--preset", "rafdb", "--out", "a run", NPROC="2")
    assert done.returncode == 0, done.stderr
    started = torchrun_reads(cluster.words())
    assert (started.nproc_per_node, started.max_restarts, started.standalone) == ("2", 0, True)
    assert (started.module, started.training_script) == (True, "adadf_dist.train")
    assert started.training_script_args == ["--preset", "rafdb", "--out", "a run"]


def test_torchrun_command_on_several_nodes(cluster: Cluster) -> None:
    several = {
        "NNODES": "2:4",
        "NPROC": "8",
        "RDZV_ENDPOINT": "localhost:29511",
        "RDZV_ID": "mine",
        "MAX_RESTARTS": "5",
    }
    done = cluster.script("torchrun.sh", "--seed", "3", NODE_RANK="0", **several)
    assert done.returncode == 0, done.stderr
    started = torchrun_reads(cluster.words())
    assert (started.nnodes, started.rdzv_backend, started.rdzv_endpoint) == ("2:4", "c10d", "localhost:29511")
    assert (started.rdzv_id, started.rdzv_conf, started.max_restarts) == ("mine", "is_host=1", 5)
    assert started.training_script_args == ["--seed", "3"]


def torchrun_reads(words: Sequence[str]) -> argparse.Namespace:
    assert words[:2] == ["-m", "torch.distributed.run"]
    return get_args_parser().parse_args(words[2:])


def test_deepspeed_command_with_a_hostfile(cluster: Cluster) -> None:
    runner = pytest.importorskip("deepspeed.launcher.runner")
    hosts = LAUNCH / "hostfile.example"
    done = cluster.script("deepspeed.sh", "--out", "a run", HOSTFILE=str(hosts), MASTER_PORT="29777")
    assert done.returncode == 0, done.stderr
    assert cluster.words()[:2] == ["-m", "deepspeed.launcher.runner"]
    started = runner.parse_args(cluster.words()[2:])
    assert (started.module, started.no_local_rank, started.master_port) == (True, True, 29777)
    assert started.user_script == "adadf_dist.train"
    assert started.user_args == ["--engine", "deepspeed", "--out", "a run"]
    assert dict(runner.fetch_hostfile(started.hostfile)) == {"node-1": 8, "node-2": 8}


def test_deepspeed_command_on_one_node(cluster: Cluster) -> None:
    runner = pytest.importorskip("deepspeed.launcher.runner")
    assert cluster.script("deepspeed.sh", NPROC="2").returncode == 0
    started = runner.parse_args(cluster.words()[2:])
    assert (started.num_gpus, started.user_args) == (2, ["--engine", "deepspeed"])


SEVERAL = {"NNODES": "2", "NPROC": "1"}


@pytest.mark.parametrize(
    ("script", "variables", "output"),
    [
        ("torchrun.sh", {"NNODES": "two"}, "NNODES is two; must be a number of nodes or MIN:MAX"),
        ("torchrun.sh", {"NPROC": "0"}, "NPROC is 0; must be the number of ranks on this node"),
        ("torchrun.sh", {"NPROC": "1", "MAX_RESTARTS": "no"}, "MAX_RESTARTS is no; must be a number"),
        ("torchrun.sh", {"PYTHON": "no-such-python"}, "PYTHON: no-such-python not found; activate"),
        ("torchrun.sh", SEVERAL, "RDZV_ENDPOINT is not set; NNODES=2 requires HOST:PORT"),
        ("torchrun.sh", {**SEVERAL, "RDZV_ENDPOINT": "here"}, "RDZV_ENDPOINT is here; NNODES=2 requires HOST:PORT"),
        ("torchrun.sh", {**SEVERAL, "RDZV_ENDPOINT": "h:1", "NODE_RANK": "x"}, "NODE_RANK is x; must be 0 on h"),
        (
            "deepspeed.sh",
            {"HOSTFILE": "no/such"},
            "HOSTFILE: no/such: no such file; create it with a line 'HOST slots=GPUS'",
        ),
        ("deepspeed.sh", {"HOSTFILE": "LICENSE"}, "is not 'HOST slots=GPUS'"),
        (
            "deepspeed.sh",
            {"HOSTFILE": "launch/hostfile.example", "NPROC": "2"},
            "NPROC is 2, but the slots in",
        ),
        ("deepspeed.sh", {"NPROC": "2", "CUDA_VISIBLE_DEVICES": "1"}, "both select GPUs; unset one of them"),
        ("deepspeed.sh", {"MASTER_PORT": "x"}, "MASTER_PORT is x; must be the number of a free port"),
    ],
)
def test_user_error_is_one_line(cluster: Cluster, script: str, variables: dict[str, str], output: str) -> None:
    done = cluster.script(script, **variables)
    assert done.returncode == 2
    assert output in done.stderr and done.stderr.startswith(f"{script}: error: ") and done.stderr.count("\n") == 1
    assert not (cluster.folder / "words-0").exists()


def test_hostfile_of_comments_is_rejected(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("# nobody\n\n")
    done = cluster.script("deepspeed.sh", HOSTFILE=str(tmp_path / "hosts"))
    assert done.returncode == 2 and "contains no node" in done.stderr


def test_unreachable_endpoint_gives_up(cluster: Cluster) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    done = cluster.script("torchrun.sh", **SEVERAL, RDZV_ENDPOINT=endpoint, NODE_RANK="1", RDZV_TIMEOUT_S="1")
    assert done.returncode == 2
    assert f"{endpoint} is not reachable after 1 s" in done.stderr and done.stderr.count("\n") == 1


def test_a_variable_of_the_last_release_is_accepted_with_a_line(cluster: Cluster) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    done = cluster.script("torchrun.sh", **SEVERAL, RDZV_ENDPOINT=endpoint, NODE_RANK="1", RDZV_WAIT="1")
    assert done.returncode == 2
    renamed, error = done.stderr.splitlines()
    assert renamed == "torchrun.sh: RDZV_WAIT is now RDZV_TIMEOUT_S"
    assert f"{endpoint} is not reachable after 1 s" in error


@pytest.mark.parametrize("logged", [False, True], ids=["as it is", "logger on"])
def test_example_config_is_valid_for_deepspeed(logged: bool, tmp_path: Path) -> None:
    given = json.loads((LAUNCH / "deepspeed.json").read_text())
    given["comms_logger"]["enabled"] = logged
    path = tmp_path / "deepspeed.json"
    path.write_text(json.dumps(given))
    config = build_config(
        [ConfigLayer("test", {"engine": "deepspeed", "deepspeed.config_file": str(path), "batch_size": 64})]
    )
    made = make_deepspeed_config(config, ranks=2)
    assert given["zero_optimization"].items() <= made["zero_optimization"].items()
    assert made.get("comms_logger") == (given["comms_logger"] if logged else None)
    zero = pytest.importorskip("deepspeed.runtime.zero.config").DeepSpeedZeroConfig
    comms = pytest.importorskip("deepspeed.comm.config").CommsLoggerConfig
    assert given["zero_optimization"].keys() <= zero.model_fields.keys()
    assert given["comms_logger"].keys() <= comms.model_fields.keys()


def prepared_by_ray(name: str) -> dict[str, Any]:
    """The cluster file with Ray's defaults filled in, as `ray up` checks it."""
    cluster = yaml.safe_load((LAUNCH / name).read_text())
    ray = pytest.importorskip("ray.autoscaler._private.util")
    prepared: dict[str, Any] = ray.prepare_config(cluster)
    ray.validate_config(prepared)
    with pytest.raises(Exception, match="Additional properties"):
        ray.validate_config({**prepared, "workers": 3})
    return prepared


def test_ray_accepts_the_cluster_file() -> None:
    cluster = yaml.safe_load((LAUNCH / "ray_cluster.yaml").read_text())
    assert {"cluster_name", "provider", "auth"} <= cluster.keys()
    assert cluster["provider"].keys() == {"type", "head_ip", "worker_ips"}
    assert prepared_by_ray("ray_cluster.yaml")["max_workers"] == len(cluster["provider"]["worker_ips"])


def test_ray_and_aws_accept_the_cloud_file() -> None:
    """Ray's schema for the file, and EC2's own model of RunInstances for each node."""
    prepared = prepared_by_ray("ray_cluster_aws.yaml")
    types = prepared["available_node_types"]
    assert prepared["head_node_type"] == "head" and types["head"]["max_workers"] == 0
    assert types["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    model = pytest.importorskip("botocore.session").get_session().get_service_model("ec2")
    validate = pytest.importorskip("botocore.validate").ParamValidator().validate
    shape = model.operation_model("RunInstances").input_shape
    for node in types.values():
        asked = {**node["node_config"], "MinCount": 1, "MaxCount": 1}
        assert not validate(asked, shape).has_errors()
        assert validate({**asked, "Spot": True}, shape).has_errors()
    for key in ("initialization_commands", "head_setup_commands", "head_start_ray_commands"):
        for line in prepared[key]:
            assert subprocess.run(["bash", "-n", "-c", line]).returncode == 0, line


def test_two_ranks_train_under_torchrun(faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run_for_real("torchrun.sh", settings(faces, out, epochs="1"))
    assert done.returncode == 0, done.stderr
    assert status(out)["state"] == "finished"
    assert "2 on cpu" in done.stdout


@pytest.mark.slow
def test_two_ranks_under_deepspeeds_launcher_stop_and_resume(faces: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    out = tmp_path / "run"
    values = settings(faces, out, epochs="8", deepspeed__config_file=str(LAUNCH / "deepspeed.json"))
    job = start_for_real("deepspeed.sh", values)
    try:
        wait_until(lambda: len(records(out, "steps")) >= 3)
        job.terminate()
        output = "".join(communicate(job, TIMEOUT_S))
    finally:
        kill(job)
    assert status(out)["state"] == "stopped", output
    stopped_at = status(out)["step"]
    assert isinstance(stopped_at, int) and stopped_at < 32
    done = run_for_real("deepspeed.sh", values)
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stdout
    assert status(out) | {"state": "finished", "step": 32} == status(out)


def ranks_of(out: Path) -> object:
    path = out / "run_info.json"
    return json.loads(path.read_text())["ranks"] if path.exists() else None


@pytest.mark.slow
def test_node_joins_late_and_another_is_lost(faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    values = settings(faces, out, epochs="1000", checkpoint__save_every_steps="5")
    several = {"NNODES": "1:2", "NPROC": "1", "RDZV_ENDPOINT": f"localhost:{free_port()}"}
    nodes = []
    try:
        for number, ranks in enumerate(("1 on cpu", "2 on cpu")):
            nodes.append(start_for_real("torchrun.sh", values, NODE_RANK=str(number), **several))
            wait_until(lambda: ranks_of(out) == ranks, seconds=120)  # noqa: B023
            seen = len(records(out, "steps"))
            wait_until(lambda: len(records(out, "steps")) > seen + 5, seconds=120)  # noqa: B023
        kill(nodes[1])
        wait_until(lambda: ranks_of(out) == "1 on cpu", seconds=200)
        nodes[0].terminate()
        assert "stopped at" in communicate(nodes[0], 120)[0]
    finally:
        for node in nodes:
            kill(node)
    assert status(out)["state"] == "stopped"


def kill(job: subprocess.Popen[str]) -> None:
    """Kill a process and its descendants: ranks lead sessions of their own."""
    if job.poll() is None:
        for process in [*psutil.Process(job.pid).children(recursive=True), psutil.Process(job.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def start_for_real(script: str, values: dict[str, str], **variables: str) -> subprocess.Popen[str]:
    words = [word for key, value in values.items() for word in (f"--{key}", value)]
    more = {"NPROC": "2", "PYTHON": sys.executable, "MASTER_PORT": str(free_port()), **variables}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        ["bash", str(LAUNCH / script), "--preset", "rafdb", *words],
        cwd=ROOT,
        env={**environment(), **more},
        stdout=pipe,
        stderr=pipe,
        text=True,
    )


def run_for_real(script: str, values: dict[str, str]) -> subprocess.CompletedProcess[str]:
    job = start_for_real(script, values)
    try:
        out, err = communicate(job, 200)
    finally:
        kill(job)
    return subprocess.CompletedProcess(job.args, job.returncode, out, err)
