"""Shared fixtures: a small synthetic dataset."""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch

from adadf_dist.console.logs import configure_logging
from adadf_dist.data.synthetic.dataset import build_synthetic_dataset

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Real faces and golden vectors, where there are some."""


# a background job of a script ignores Ctrl-C, and programs that tests interrupt would inherit this
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# the ranks and workers of tests are forked from a server that imports torch once
multiprocessing.set_forkserver_preload(["adadf_dist.train"])
forkserver.ensure_running()

torch.set_num_threads(1)
"""As every rank of a test runs: another number of threads sums in another order."""


@pytest.fixture(autouse=True)
def console_logging() -> None:
    """Print log messages as a command on rank 0 does, whatever rank an earlier test's command had."""
    configure_logging()


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder of 64 training, 20 validation and 30 test faces of 32x32."""
    folder = tmp_path_factory.mktemp("shards") / "faces"
    build_synthetic_dataset(folder, {"train": 64, "validation": 20, "test": 30}, size=32, workers=1)
    return folder
