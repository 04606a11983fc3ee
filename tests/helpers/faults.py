"""Paths of the scripts that train with a fault, and waiting for what they print."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.helpers.runs import assert_same_run
from tests.helpers.waiting import wait_until

FAULTY = str(Path(__file__).parents[1] / "helpers" / "fault_injection.py")


def assert_same_result(out: Path, reference: Path) -> None:
    """Assert that two runs and their results are equal."""
    assert_same_run(out, reference)
    assert (out / "result.json").read_text() == (reference / "result.json").read_text()


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str], timeout: float = 120) -> None:
    def ended_or_happened() -> bool:
        return process.poll() is not None or happened()

    wait_until(ended_or_happened, "the run did not get that far", timeout)
    assert happened(), "the run ended too early"
