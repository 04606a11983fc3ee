"""File systems without file locks give one line, from the run and from `check` before it."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from adadf_dist.check.dataset import inspect_remote_dataset
from adadf_dist.check.run_dir import check_folder
from adadf_dist.checkpoint.run_dir import lock_run_dir
from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.config.schema import DataConfig
from adadf_dist.data.build.staging import staging_dir
from adadf_dist.data.remote.cache import ensure_cached
from adadf_dist.errors import RunDirLockedError, UserError
from adadf_dist.files.locks import exclusive_lock, probe, shared_lock
from adadf_dist.findings import Severity
from tests.helpers.ranks import single_process_world
from tests.helpers.remote_server import Site, serve
from tests.helpers.runs import settings

NO_LOCKS = r"cannot be locked \(No locks available\)"


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system as NFS without its lock service."""

    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture
def site(faces: Path) -> Iterator[Site]:
    with serve(faces) as site:
        yield site


def test_run_folder_without_locks_is_one_line(no_locks: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"out: \S+ {NO_LOCKS}"), lock_run_dir(tmp_path / "out"):
        pass


def test_build_without_locks_is_one_line(no_locks: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"--out: \S+ {NO_LOCKS}"), staging_dir(tmp_path / "built", False, {}):
        pass


def test_cache_without_locks_is_one_line(no_locks: None, site: Site, tmp_path: Path) -> None:
    data = DataConfig(shards=site.url, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=rf"data\.cache_dir: \S+ {NO_LOCKS}"), ensure_cached(data):
        pass


def test_check_finds_a_run_folder_without_locks(no_locks: None, faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = check_folder(build_config([ConfigLayer("test", settings(faces, out))]), single_process_world(), 7, 64)
    assert line.severity is Severity.ERROR
    assert "No locks available" in line.message
    assert not out.exists()


def test_check_finds_a_cache_without_locks(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, site: Site, tmp_path: Path
) -> None:
    values = settings(
        Path(site.url), tmp_path / "out", data__shards=site.url, data__cache_dir=str(tmp_path / "a" / "b")
    )
    config = build_config([ConfigLayer("test", values)])
    _, line = inspect_remote_dataset(config, single_process_world())
    assert line.severity is Severity.OK
    request.getfixturevalue("no_locks")
    _, line = inspect_remote_dataset(config, single_process_world())
    assert line.severity is Severity.ERROR
    assert "data.cache_dir" in line.message
    assert "No locks available" in line.message
    assert not (tmp_path / "a").exists()


def test_a_probe_leaves_nothing(tmp_path: Path) -> None:
    probe(tmp_path, "out")
    assert list(tmp_path.iterdir()) == []


def test_shared_locks_exclude_an_exclusive_one_within_a_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with shared_lock(path, "out"), shared_lock(path, "out"), exclusive_lock(path, "out") as acquired:
        assert not acquired
    with exclusive_lock(path, "out") as first, exclusive_lock(path, "out") as second:
        assert (first, second) == (True, False)
    with exclusive_lock(path, "out") as acquired:
        assert acquired


def test_a_wait_for_a_lock_can_be_given_up(tmp_path: Path) -> None:
    answers = iter([False, True])
    with (
        shared_lock(tmp_path / "lock", "out"),
        exclusive_lock(tmp_path / "lock", "out", give_up=lambda: next(answers)) as acquired,
    ):
        assert not acquired
    assert next(answers, None) is None


def test_a_run_folder_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match=r"out: \S+ cannot be written to \(Is a directory\)"), lock_run_dir(tmp_path):
        pass


def test_process_lock_excludes_other_processes(tmp_path: Path) -> None:
    """Even a child that inherited the open file."""
    with lock_run_dir(tmp_path):
        child = os.fork()
        if not child:
            try:
                with lock_run_dir(tmp_path):
                    os._exit(1)
            except RunDirLockedError:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_child_does_not_keep_the_lock_of_a_killed_process(tmp_path: Path) -> None:
    ready, done = os.pipe(), os.pipe()
    owner = os.fork()
    if not owner:
        with lock_run_dir(tmp_path):
            os.close(done[1])
            if not os.fork():  # outlives the owner
                os.write(ready[1], b"x")
                os.read(done[0], 1)
                os._exit(0)
            signal.pause()
    try:
        assert os.read(ready[0], 1) == b"x"
        with pytest.raises(RunDirLockedError), lock_run_dir(tmp_path):
            pass
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
        with lock_run_dir(tmp_path):
            pass
    finally:
        for end in (*ready, *done):
            os.close(end)


def test_a_cache_in_no_home_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    data = DataConfig(shards="http://127.0.0.1:9/faces")
    with (
        pytest.raises(UserError, match=r"data\.cache_dir is ~/.*no home folder; set HOME or data\.cache_dir"),
        ensure_cached(data),
    ):
        pass
