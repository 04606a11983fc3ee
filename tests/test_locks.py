"""File systems without file locks: one line, from the run and from `check` before it."""

from __future__ import annotations

import errno
import fcntl
import os
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
from adadf_dist.files.locks import Owner, lock, probe
from adadf_dist.findings import Severity
from tests.ranks import alone
from tests.remote_server import Site, serve
from tests.runs import settings

NO_LOCKS = r"cannot be locked \(No locks available\)"


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS whose lock service is down."""

    def refuse(*args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture
def site(faces: Path) -> Iterator[Site]:
    with serve(faces) as site:
        yield site


def test_a_run_folder_without_locks(no_locks: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"out: \S+ {NO_LOCKS}"), lock_run_dir(tmp_path / "out"):
        pass


def test_a_build_without_locks(no_locks: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"--out: \S+ {NO_LOCKS}"), staging_dir(tmp_path / "built", False, {}):
        pass


def test_a_cache_without_locks(no_locks: None, site: Site, tmp_path: Path) -> None:
    data = DataConfig(shards=site.url, cache=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=rf"data\.cache: \S+ {NO_LOCKS}"), ensure_cached(data):
        pass


def test_check_finds_a_run_folder_without_locks(no_locks: None, faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = check_folder(build_config([ConfigLayer("test", settings(faces, out))]), alone(), 7, 64)
    assert line.severity is Severity.ERROR
    assert "No locks available" in line.message
    assert not out.exists()


def test_check_finds_a_cache_without_locks(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, site: Site, tmp_path: Path
) -> None:
    values = settings(Path(site.url), tmp_path / "out", data__shards=site.url, data__cache=str(tmp_path / "a" / "b"))
    config = build_config([ConfigLayer("test", values)])
    _, line = inspect_remote_dataset(config, alone())
    assert line.severity is Severity.OK
    request.getfixturevalue("no_locks")
    _, line = inspect_remote_dataset(config, alone())
    assert line.severity is Severity.ERROR
    assert "data.cache" in line.message
    assert "No locks available" in line.message
    assert not (tmp_path / "a").exists()


def test_a_probe_leaves_nothing(tmp_path: Path) -> None:
    for owner in Owner:
        probe(tmp_path, owner, "out")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_a_file_excludes_within_a_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w") as first, path.open("w") as second:
        assert lock(first, Owner.FILE, "out", shared=True)
        assert lock(second, Owner.FILE, "out", shared=True)
        assert not lock(second, Owner.FILE, "out")
    with path.open("w") as third:
        assert lock(third, Owner.FILE, "out")


def test_a_lock_of_a_process_excludes_another(tmp_path: Path) -> None:
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


def test_a_cache_in_no_home_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    data = DataConfig(shards="http://127.0.0.1:9/faces")
    with (
        pytest.raises(UserError, match=r"data\.cache is ~/.*no home folder; set HOME or data\.cache"),
        ensure_cached(data),
    ):
        pass
