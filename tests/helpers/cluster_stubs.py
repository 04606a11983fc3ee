"""Stubs of cluster commands on PATH, for the scripts in launch/."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.runs import ROOT, environment
from tests.helpers.waiting import communicate

LAUNCH = ROOT / "launch"
TIMEOUT_S = 60

STUBS = {
    # queries go to the real interpreter, other arguments are recorded
    "python": f"""
if [[ $1 == -c ]]; then exec {sys.executable} "$@"; fi
printf '%s\\n' "$@" >"$STUBS/words-${{RANK:-0}}"
env >"$STUBS/env-${{RANK:-0}}"
""",
    "scontrol": """
echo "scontrol $*" >>"$STUBS/calls"
case "$1 $2" in
    "show job") echo "JobId=$3 JobState=$(cat "$STUBS/job_state")"
        echo "   PreemptTime=$(cat "$STUBS/preempt_time") EndTime=$(cat "$STUBS/end_time")" ;;
    "show hostnames") printf 'node-1\\nnode-2\\n' ;;
esac
""",
    "scancel": """
echo "scancel $*" >>"$STUBS/calls"
kill -TERM "$(cat "$STUBS/ranks_pid")"
""",
    "srun": """
echo $$ >"$STUBS/ranks_pid"
while [[ $1 == -* ]]; do shift; done
source "$STUBS/ranks"
""",
}


class Cluster:
    """Stubs on PATH, and the run folder into which the stub of srun writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "stubs"
        self.out = folder / "a run"
        self.out.mkdir(parents=True)
        self.folder.mkdir()
        for name, text in STUBS.items():
            path = self.folder / name
            path.write_text("#!/usr/bin/env bash\n" + text)
            path.chmod(0o755)
        self.set("job_state", "RUNNING")
        self.set("preempt_time", "None")
        self.set("end_time", "Unknown")
        self.set("calls", "")

    def set(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def ranks(self, text: str) -> None:
        """Run bash as the ranks, with the words of a task as its arguments."""
        self.set("ranks", text)

    def calls(self, start: str) -> list[str]:
        return [line for line in (self.folder / "calls").read_text().splitlines() if line.startswith(start)]

    def words(self, rank: int = 0) -> list[str]:
        return (self.folder / f"words-{rank}").read_text().splitlines()

    def variables(self, rank: int = 0) -> dict[str, str]:
        lines = (self.folder / f"env-{rank}").read_text().splitlines()
        return {name: value for line in lines for name, _, value in [line.partition("=")]}

    def environment(self, **more: str) -> dict[str, str]:
        of_others = ("SLURM", "RDZV", "CUDA", "MASTER")
        plain = {k: v for k, v in environment().items() if not k.startswith(of_others) and k != "OMP_NUM_THREADS"}
        path = f"{self.folder}:{os.environ['PATH']}"
        return {**plain, "PATH": path, "STUBS": str(self.folder), **more}

    def job(self, *words: str, **more: str) -> subprocess.Popen[str]:
        slurm = {"SLURM_JOB_ID": "4242", "SLURM_JOB_NODELIST": "node-[1-2]", "SLURM_CPUS_PER_TASK": "3"}
        return subprocess.Popen(
            ["bash", str(LAUNCH / "slurm.sbatch"), "--preset", "rafdb", "--out", str(self.out), *words],
            cwd=ROOT,
            env=self.environment(**slurm, **more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def script(self, name: str, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(LAUNCH / name), *words]
        env = self.environment(**more)
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=TIMEOUT_S)


def ended(job: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        _, output = communicate(job, TIMEOUT_S)
    finally:
        job.kill()
    return job.returncode, output
