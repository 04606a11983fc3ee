"""Commands whose terminal, pipe or log file disappears, and the signals that announce it."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest

from adadf_dist import train
from adadf_dist.audit.__main__ import main as audit
from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.console import terminal
from adadf_dist.console.exit import cli_errors
from adadf_dist.console.terminal import tolerant, tolerant_console, write_error
from adadf_dist.evaluate.__main__ import main as evaluate
from adadf_dist.training.final_test import Result
from adadf_dist.training.watchdog import write_stderr
from shards.build import main as build
from tests.helpers.runs import ROOT, command, environment, records, settings, status


def closed_terminal() -> int:
    master, slave = pty.openpty()
    os.close(master)
    return slave


def pipe_without_reader() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


GONE = {"closed terminal": closed_terminal, "pipe without reader": pipe_without_reader, "full disk": full_disk}


def text_stream(descriptor: int) -> TextIO:
    """A stream as Python opens standard output."""
    return io.TextIOWrapper(io.FileIO(descriptor, "w", closefd=False), "utf-8", "strict", line_buffering=True)


@contextmanager
def without_console(kind: str) -> Iterator[None]:
    """Make standard output and error unwritable. Not a fixture: pytest sets both before each phase of a test."""
    descriptor = GONE[kind]()
    with pytest.raises(OSError, match=r"Input/output error|Broken pipe|No space left"):
        os.write(descriptor, b"x")  # it is closed
    with pytest.MonkeyPatch.context() as patch:
        for name in ("stdout", "stderr"):
            stream = text_stream(descriptor)
            patch.setattr(sys, name, stream)
            patch.setattr(sys, f"__{name}__", stream)
        yield
    os.close(descriptor)


@pytest.mark.parametrize("make", GONE.values(), ids=GONE)
def test_unwritable_output_is_dropped(make: Callable[[], int]) -> None:
    descriptor = make()
    stream = tolerant(text_stream(descriptor))
    assert write_error(stream) is None
    for _ in range(3):
        print("x" * 100_000, file=stream, flush=True)
    error = write_error(stream)
    assert error is not None
    assert error.errno in (errno.EIO, errno.EPIPE, errno.ENOSPC)
    os.close(descriptor)


def test_writable_output_is_written_completely() -> None:
    reader, writer = os.pipe()
    text = "".join(f"{number} é\n" for number in range(20_000))  # more than a pipe holds
    got: list[bytes] = []

    def read() -> None:
        with open(reader, "rb") as file:
            got.append(file.read())

    thread = threading.Thread(target=read)
    thread.start()
    stream = tolerant(text_stream(writer))
    stream.write(text)
    stream.flush()
    os.close(writer)
    thread.join(30)
    assert got[0].decode() == text
    assert write_error(stream) is None


def test_idle_reader_does_not_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal stopped by Ctrl-S, or `| less` without scrolling."""
    monkeypatch.setattr(terminal, "PATIENCE_S", 0.01)
    reader, writer = os.pipe()
    stream = tolerant(text_stream(writer))
    print("x" * 1_000_000, file=stream, flush=True)
    assert isinstance(write_error(stream), TimeoutError)
    assert len(os.read(reader, 1_000_000)) > 0
    print("end", file=stream, flush=True)  # there is space again
    assert os.read(reader, 1_000_000).endswith(b"end\n")
    os.close(reader)
    os.close(writer)


def test_ascii_terminal_gets_escapes() -> None:
    reader, writer = os.pipe()
    ascii_only = io.TextIOWrapper(io.FileIO(writer, "w", closefd=False), "ascii", "strict", line_buffering=True)
    with pytest.raises(UnicodeEncodeError):
        ascii_only.write("naïve")
    print("naïve", file=tolerant(ascii_only))
    assert os.read(reader, 100) == b"na\\xefve\n"
    os.close(reader)
    os.close(writer)


def test_streams_of_a_caller_are_kept() -> None:
    before = sys.stdout, sys.stderr  # those of pytest
    with tolerant_console():
        assert (sys.stdout, sys.stderr) == before


def test_closed_streams_accept_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """With `>&- 2>&-`, Python has no streams at all."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with cli_errors("test"):
        print("text", flush=True)
        assert not sys.stderr.isatty()
    assert sys.stdout is None


def test_closed_descriptors_are_not_reused_by_files() -> None:
    script = "import os; from adadf_dist.console.terminal import *\n"
    script += "with tolerant_console(): print(os.open('/', 0) > 2, flush=True)"
    script += "\nos.fstat(1), os.fstat(2)"
    closing = f'exec {sys.executable} -c "{script}" >&- 2>&-'
    assert subprocess.run(["sh", "-c", closing], cwd=ROOT, timeout=60).returncode == 0


@pytest.mark.parametrize("kind", GONE)
def test_lost_log_is_not_an_error(kind: str) -> None:
    with without_console(kind), cli_errors("test"):
        print("text")


@pytest.mark.parametrize("kind", GONE)
def test_lost_report_is_an_error(kind: str) -> None:
    with without_console(kind), pytest.raises(SystemExit) as ended, cli_errors("test", prints="report"):
        print("text")
    assert ended.value.code in (1, 2)


def test_watchdog_continues_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    descriptor = closed_terminal()
    monkeypatch.setattr("adadf_dist.training.watchdog.STDERR", descriptor)
    write_stderr("rank 0: no progress", stacks=True)
    os.close(descriptor)


@pytest.mark.parametrize("kind", ["closed terminal", pytest.param("full disk", marks=pytest.mark.slow)])
def test_long_commands_need_no_console(kind: str, faces: Path, tmp_path: Path) -> None:
    out, drawn, report = tmp_path / "out", tmp_path / "drawn", tmp_path / "report.json"
    words = [word for key, value in settings(faces, out).items() for word in (f"--{key}", value)]
    with without_console(kind):
        build(["synthetic", "--out", str(drawn), "--train", "20", "--validation", "10", "--test", "10"])
        train.main(["--preset", "rafdb", *words])
        audit([str(out)])
        with pytest.raises(SystemExit):  # what it prints is a report
            evaluate([str(out), "--json", str(report)])
    assert (drawn / "dataset.json").exists()
    assert [record["epoch"] for record in records(out, "epoch")] == [1, 2]
    assert [record["step"] for record in records(out, "steps")] == list(range(1, 9))
    assert status(out)["state"] == "finished"
    assert (out / "audit" / "audit.html").exists()
    assert report.exists()


class HangUpError(Exception):
    pass


@pytest.fixture
def hang_up() -> Iterator[None]:
    """Make SIGHUP raise an error unless the code under test handles it."""

    def refuse(number: int, frame: object) -> None:
        raise HangUpError

    before = signal.signal(signal.SIGHUP, refuse)
    yield
    signal.signal(signal.SIGHUP, before)


def test_sighup_saves_and_stops(hang_up: None, faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = build_config([ConfigLayer("test", settings(faces, out))])
    assert isinstance(train.run(config, lambda record: os.kill(os.getpid(), signal.SIGHUP)), train.Stopped)
    assert status(out)["state"] == "stopped"
    assert isinstance(train.run(config), Result)
    assert [record["step"] for record in records(out, "steps")] == list(range(1, 9))


def test_ignored_sighup_stays_ignored(hang_up: None, faces: Path, tmp_path: Path) -> None:
    """Under `nohup`."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    out = tmp_path / "out"
    config = build_config([ConfigLayer("test", settings(faces, out, epochs="1"))])
    assert isinstance(train.run(config, lambda record: os.kill(os.getpid(), signal.SIGHUP)), Result)
    assert status(out)["state"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("nohup", [False, True])
def test_dropped_connection_saves_and_stops(nohup: bool, faces: Path, tmp_path: Path) -> None:
    """A real controlling terminal is closed, as by ssh: SIGHUP to all its processes, and EIO."""
    out = tmp_path / "out"
    master, slave = pty.openpty()

    def own_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        if nohup:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = subprocess.Popen(
        command(settings(faces, out, epochs="4", data__num_workers="1")),
        cwd=ROOT,
        env=environment(),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=own_terminal,
    )
    os.close(slave)
    try:
        while len(records(out, "steps")) < 2:
            if select.select([master], [], [], 0.05)[0]:
                os.read(master, 10_000)
            assert process.poll() is None
        os.close(master)
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait()
    assert status(out)["state"] == ("finished" if nohup else "stopped")
    if nohup:
        assert [record["epoch"] for record in records(out, "epoch")] == [1, 2, 3, 4]
