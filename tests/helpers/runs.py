"""Start the trainer as a user does, and read its output files."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from adadf_dist import train
from adadf_dist.checkpoint.storage import read_checkpoint
from tests.helpers.waiting import communicate

ROOT = Path(__file__).resolve().parents[2]

SMALL = {
    "epochs": "2",
    "batch_size": "16",
    "model.backbone": "resnet10",
    "data.image_size": "32",
    "data.num_workers": "0",
    "data.loader": "torch",
    "evaluation.write_report": "false",
    "runtime.tensorboard": "false",
    "runtime.log_every_steps": "1",
    "runtime.stop_check_steps": "1",
    "runtime.timeout_s": "60",
}


def settings(faces: Path, out: Path, **changed: str) -> dict[str, str]:
    """Options of a small run on `faces`; keyword arguments have `__` for the dot."""
    more = {key.replace("__", "."): value for key, value in changed.items()}
    return {**SMALL, "data.shards": str(faces), "out": str(out), **more}


def command(values: Mapping[str, str], ranks: int = 1, script: Sequence[str] = ("-m", "adadf_dist.train")) -> list[str]:
    words = [word for key, value in values.items() for word in (f"--{key}", value)]
    if ranks == 1:
        return [sys.executable, *script, "--preset", "rafdb", *words]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    return [*launcher, *script, "--preset", "rafdb", *words]


def environment() -> dict[str, str]:
    # Ray runs its workers at nice 15, so on a loaded machine they would hardly run at all
    usual = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "RAY_worker_niceness": "0"}
    return {**os.environ, **usual, "PYTHONPATH": str(ROOT)}


def start(arguments: Sequence[str], **more: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(arguments, cwd=ROOT, env={**environment(), **more}, stdout=pipe, stderr=pipe, text=True)


def finish(arguments: Sequence[str], timeout: float = 120, **more: str) -> subprocess.CompletedProcess[str]:
    """Run to the end unless idle for `timeout` seconds; no process is left."""
    process = start(arguments, **more)
    try:
        out, err = communicate(process, timeout)
    except BaseException:
        process.kill()
        print(*process.communicate(), sep="\n")  # pytest shows it with the failure
        raise
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def train_here(values: Mapping[str, str]) -> str:
    """Train in this process, which has imported torch already. Returns the printed text."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        train.main(command(values)[3:])
    return printed.getvalue()


def records(out: Path, kind: str) -> list[dict[str, object]]:
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    whole = [line for line in lines if line.endswith("}")]
    return [record for record in map(json.loads, whole) if record["kind"] == kind]


def numbers(out: Path, kind: str) -> list[dict[str, object]]:
    """Records without measured times."""
    return [
        {k: v for k, v in record.items() if k not in ("images_per_s", "data_wait_fraction", "waiting", "ranks")}
        for record in records(out, kind)
    ]


def status(out: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((out / "status.json").read_text())
    return content


def final_weights(out: Path) -> dict[str, torch.Tensor]:
    """Parameters and buffers of a run's newest checkpoint."""
    newest = sorted((out / "checkpoints").glob("checkpoint-*.pt"))[-1]
    weights: dict[str, torch.Tensor] = read_checkpoint(newest)["engine"]["model"]
    return weights


def assert_same_run(out: Path, reference: Path) -> None:
    """Assert equal losses of every step, records of every epoch and final weights, bit for bit."""
    assert numbers(out, "steps") == numbers(reference, "steps")
    assert numbers(out, "epoch") == numbers(reference, "epoch")
    mine, theirs = final_weights(out), final_weights(reference)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
