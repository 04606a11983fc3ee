"""Twenty training steps reproduce the committed losses, so a refactoring cannot change them.

On a processor of another kind sums are ordered otherwise: without AVX2 the losses differ by up to 6e-6.

python -m tests.training.test_loss_curve > tests/data/loss_curve.json    after a deliberate change
"""

from __future__ import annotations

import json
import platform
import re
import tempfile
from pathlib import Path

import pytest
import torch

from tests.helpers.old_files import FOLDER
from tests.helpers.runs import records, settings, train_here

COMMITTED = Path(__file__).parents[1] / "data" / "loss_curve.json"
LOSSES = ("total", "kl_divergence", "cross_entropy", "rank_regularization")


def describe_machine() -> str:
    """What determines the order of sums: processor and torch."""
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{found[1] if found else platform.machine()}, {capability}, torch {torch.__version__}"


def train_curve(folder: Path) -> list[list[float]]:
    """Losses by step of one CPU rank in fp32: two steps per epoch, so that class distributions take part."""
    changed = {"epochs": "10", "batch_size": "7", "loss__epoch_threshold": "3", "evaluation__run_test": "false"}
    changed["optimizer__lr"] = "1e-5"  # a usual rate makes a rounding error a thousand times larger within 5 steps
    train_here(settings(FOLDER / "faces", folder / "run", **changed))
    return [[float(str(record[name])) for name in LOSSES] for record in records(folder / "run", "steps")]


def test_losses_of_twenty_steps_equal_the_committed_curve(tmp_path: Path) -> None:
    committed = json.loads(COMMITTED.read_text())
    losses = train_curve(tmp_path)
    assert len(losses) == 20
    if committed["machine"] == describe_machine():
        assert losses == committed["losses"]
    else:
        assert losses == [pytest.approx(step, rel=2e-5, abs=1e-5) for step in committed["losses"]]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        lines = [json.dumps(step) for step in train_curve(Path(name))]
        print(f'{{"machine": {json.dumps(describe_machine())},\n"losses": [\n' + ",\n".join(lines) + "\n]}")
