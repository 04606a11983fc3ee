"""Limits count only while processes are idle, so a loaded machine fails no test."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers.waiting import communicate, wait_until

COMPUTE = "import time\nwhile time.process_time() < 3: pass\nprint('done')"


def start_python(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_busy_process_may_exceed_the_limit() -> None:
    """Also in a process that another one has started."""
    nested = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {COMPUTE!r}])"
    assert communicate(start_python(nested), 1, 0.1)[0] == "done\n"


def test_idle_process_is_an_error() -> None:
    process = start_python("import time\ntime.sleep(600)")
    with pytest.raises(AssertionError, match=f"idle for 1 s: process {process.pid} has not ended"):
        communicate(process, 1, 0.1)
    with pytest.raises(AssertionError, match="idle for 1 s: no file"):
        wait_until(lambda: False, "no file", 1)
    process.kill()
    process.communicate()
