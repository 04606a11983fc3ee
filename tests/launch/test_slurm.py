"""launch/slurm.sbatch: arguments of the ranks, signals, and when the job is requeued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.helpers.cluster_stubs import LAUNCH, Cluster, ended
from tests.helpers.runs import ROOT
from tests.helpers.waiting import wait_until


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def writes(cluster: Cluster, state: str) -> str:
    """Bash that writes a status as adadf_dist.tracking.logger does: a new file, renamed."""
    text = json.dumps({"state": state, "epoch": 1}, indent=2)
    return f"printf '%s' '{text}' >'{cluster.out}/new'; mv '{cluster.out}/new' '{cluster.out}/status.json'\n"


@pytest.mark.parametrize(
    ("state", "code", "requeued", "status"),
    [
        ("stopped", 0, True, 0),
        ("finished", 0, False, 0),
        ("failed", 1, False, 1),
        ("running", 137, False, 137),  # killed by the out-of-memory killer
        ("", 2, False, 2),
        ("", 0, False, 1),
        ("", 143, True, 0),  # TERM before Python had installed its handler
    ],
)
def test_job_is_requeued_by_run_status(cluster: Cluster, state: str, code: int, requeued: bool, status: int) -> None:
    cluster.ranks((writes(cluster, state) if state else "") + f"exit {code}")
    done, output = ended(cluster.job())
    assert done == status, output
    assert cluster.calls("scontrol requeue") == (["scontrol requeue 4242"] if requeued else [])
    assert ("not requeued" in output) is (not requeued and state != "finished")


def test_status_of_an_earlier_start_is_ignored(cluster: Cluster) -> None:
    subprocess.run(["bash", "-c", writes(cluster, "stopped")], check=True)
    cluster.ranks("exit 1")
    done, output = ended(cluster.job())
    assert done == 1 and "not written by this start" in output
    assert not cluster.calls("scontrol requeue")


def test_canceled_job_is_not_requeued(cluster: Cluster) -> None:
    cluster.ranks('echo COMPLETING >"$STUBS/job_state"\n' + writes(cluster, "stopped"))
    done, output = ended(cluster.job())
    assert done == 0 and "COMPLETING: left to SLURM" in output
    assert not cluster.calls("scontrol requeue")


def saving_at_term(cluster: Cluster, code: int = 0) -> str:
    """Ranks that take a while to save when they receive SIGTERM."""
    return f"""
trap 'told=yes' TERM
touch "$STUBS/started"
until [[ ${{told-}} ]]; do sleep 0.05; done
sleep 0.7
{writes(cluster, "stopped")}
exit {code}
"""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_signal_reaches_the_ranks_and_is_awaited(cluster: Cluster, number: signal.Signals) -> None:
    cluster.ranks(saving_at_term(cluster))
    job = cluster.job()
    wait_until((cluster.folder / "started").exists)
    job.send_signal(number)
    done, output = ended(job)
    assert done == 0 and "stopped and saved" in output
    assert cluster.calls("scancel") == ["scancel --signal=TERM 4242"]
    assert cluster.calls("scontrol requeue") == ["scontrol requeue 4242"]


@pytest.mark.parametrize(("name", "value"), [("preempt_time", "2030-01-01T00:00:00"), ("job_state", "COMPLETING")])
def test_ranks_signaled_by_slurm_are_not_signaled_again(cluster: Cluster, name: str, value: str) -> None:
    """A second TERM, more than two seconds later, ends a rank unsaved."""
    cluster.ranks(saving_at_term(cluster))
    job = cluster.job()
    wait_until((cluster.folder / "started").exists)
    cluster.set(name, value)
    job.send_signal(signal.SIGTERM)
    os.kill(int((cluster.folder / "ranks_pid").read_text()), signal.SIGTERM)
    assert ended(job)[0] == 0
    assert not cluster.calls("scancel")
    assert cluster.calls("scontrol requeue") == (["scontrol requeue 4242"] if name == "preempt_time" else [])


def test_ranks_ended_by_preemption_before_writing_are_requeued(cluster: Cluster) -> None:
    cluster.ranks('echo 2030-01-01T00:00:00 >"$STUBS/preempt_time"; exit 2')
    done, output = ended(cluster.job())
    assert done == 0 and "before saving" in output
    assert cluster.calls("scontrol requeue")


def test_exit_status_after_an_interrupted_wait_is_the_ranks(cluster: Cluster) -> None:
    cluster.ranks(saving_at_term(cluster, 9).replace("stopped", "failed"))
    job = cluster.job()
    wait_until((cluster.folder / "started").exists)
    job.send_signal(signal.SIGUSR1)
    assert ended(job)[0] == 9
    assert not cluster.calls("scontrol requeue")


TWO_TASKS = """
for number in 0 1; do
    SLURM_PROCID=$((number + 2)) SLURM_LOCALID=$number SLURM_STEP_NUM_TASKS=4 SLURM_STEP_NUM_NODES=2 "$@"
done
"""


def test_task_is_a_rank_with_the_users_arguments(cluster: Cluster, tmp_path: Path) -> None:
    cluster.ranks(TWO_TASKS + writes(cluster, "finished"))
    assert ended(cluster.job("--seed", "7", "--data.shards", "some where", TMPDIR=str(tmp_path)))[0] == 0
    for rank in (2, 3):
        words = ["-m", "adadf_dist.train", "--preset", "rafdb", "--out", str(cluster.out)]
        words += ["--seed", "7", "--data.shards", "some where", "--data.cache_dir", f"{tmp_path}/adadf_dist"]
        assert cluster.words(rank) == words
        expected = {"RANK": str(rank), "LOCAL_RANK": str(rank - 2), "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
        expected |= {"MASTER_ADDR": "node-1", "MASTER_PORT": "14242", "OMP_NUM_THREADS": "3"}
        assert {name: cluster.variables(rank)[name] for name in expected} == expected


def test_cache_of_the_user_is_kept(cluster: Cluster) -> None:
    cluster.ranks(TWO_TASKS + writes(cluster, "finished"))
    assert ended(cluster.job("--data.cache_dir=mine"))[0] == 0
    assert cluster.words(2)[-1] == "--data.cache_dir=mine"


def test_run_folder_is_read_from_a_config_file(cluster: Cluster, tmp_path: Path) -> None:
    """status.json of the right folder: the one that the trainer uses."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "my.toml").write_text(f'out = "{elsewhere}"\n')
    cluster.ranks(writes(cluster, "stopped").replace(str(cluster.out), str(elsewhere)))
    job = subprocess.Popen(
        ["bash", str(LAUNCH / "slurm.sbatch"), "--config", str(tmp_path / "my.toml")],
        cwd=ROOT,
        env=cluster.environment(SLURM_JOB_ID="4242", SLURM_JOB_NODELIST="node-1"),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert ended(job)[0] == 0
    assert cluster.calls("scontrol requeue")


def test_invalid_setting_starts_no_rank(cluster: Cluster) -> None:
    cluster.ranks('touch "$STUBS/started"')
    done, output = ended(cluster.job("--batch-sise", "3"))
    assert done == 2 and output.count("\n") == 1 and "did you mean --batch_size?" in output
    assert not (cluster.folder / "started").exists()


@pytest.mark.parametrize("name", ["SAVE_GRACE_S", "SAVE_S"])
def test_ranks_are_signaled_before_the_time_limit(cluster: Cluster, name: str) -> None:
    cluster.ranks(saving_at_term(cluster))
    limit = time.time() + 6
    cluster.set("end_time", time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(limit)))
    job = cluster.job(**{name: "3"})
    wait_until((cluster.folder / "started").exists)
    status, output = ended(job)
    assert status == 0
    assert ("SAVE_S is now SAVE_GRACE_S" in output) == (name == "SAVE_S")
    assert time.time() < limit
    assert cluster.calls("scancel") == ["scancel --signal=TERM 4242"]
    assert cluster.calls("scontrol requeue") == ["scontrol requeue 4242"]
