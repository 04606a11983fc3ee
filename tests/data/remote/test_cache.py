"""The cache of remote datasets: full disks, locks, offline use, eviction."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adadf_dist.data.dataset import open_dataset
from adadf_dist.data.remote.cache import ensure_cached
from tests.helpers.remote_datasets import QUICK, TAR, assert_same_files, build, data_config, fetch, fetch_error
from tests.helpers.remote_server import Fault, Site, serve
from tests.helpers.runs import ROOT, environment, finish
from tests.helpers.waiting import communicate, wait_until


def test_unwritable_cache_is_one_line(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file")
    assert "cannot be written" in fetch_error(data_config(site, tmp_path))
    (tmp_path / "cache").unlink()
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    assert "is free; free some" in fetch_error(data_config(site, tmp_path))


def test_full_disk_is_one_line(site: Site, tmp_path: Path) -> None:
    """Files of this process may not exceed 10 kB; the kernel's error is reported as a full disk."""
    script = (
        "import resource, signal, sys; from adadf_dist.data.remote.cache import ensure_cached\n"
        "from adadf_dist.config.schema import DataConfig; from adadf_dist.console.exit import cli_errors\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))\n"
        "with cli_errors('x'), ensure_cached(DataConfig(shards=sys.argv[1], cache_dir=sys.argv[2])): pass\n"
    )
    done = finish([sys.executable, "-c", script, site.url, str(tmp_path / "cache")], timeout=60)
    assert done.returncode == 2, done.stderr
    assert "free some space" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


FETCH = (
    "import sys; from adadf_dist.data.remote.cache import ensure_cached\n"
    "from adadf_dist.config.schema import DataConfig\n"
    "with ensure_cached(DataConfig(shards=sys.argv[1], cache_dir=sys.argv[2])) as folder: print(folder)\n"
)


def test_two_processes_download_each_file_once(site: Site, original: Path, tmp_path: Path) -> None:
    site.faults = [Fault("tar", 5, stall_s=0.5)]  # slow enough for both to run at the same time
    arguments = [sys.executable, "-c", FETCH, site.url, str(tmp_path / "cache")]
    pipe = subprocess.PIPE
    both = [subprocess.Popen(arguments, cwd=ROOT, env=environment(), stdout=pipe, stderr=pipe) for _ in range(2)]
    outputs = [communicate(process) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert len({out for out, _ in outputs}) == 1
    assert_same_files(Path(outputs[0][0].decode().strip()), original)
    counts = site.count()
    assert counts.pop("dataset.json") == 2
    assert set(counts.values()) == {1}


def test_killed_download_leaves_no_lock(site: Site, original: Path, tmp_path: Path) -> None:
    site.faults = [Fault(TAR, 1, stall_s=20)]
    arguments = [sys.executable, "-c", FETCH, site.url, str(tmp_path / "cache")]
    process = subprocess.Popen(arguments, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: not site.faults[0].times, "nothing is fetched")
    process.kill()
    process.communicate()
    assert_same_files(fetch(data_config(site, tmp_path)), original)


def test_changed_dataset_is_a_new_cache_entry(tmp_path: Path) -> None:
    build(tmp_path / "site", train=10)
    with serve(tmp_path / "site") as site:
        first = fetch(data_config(site, tmp_path))
        shutil.rmtree(tmp_path / "site")
        build(tmp_path / "site", seed=1, train=10)
        second = fetch(data_config(site, tmp_path))
    assert first != second
    tar = "train-000000.tar"
    assert (second / tar).read_bytes() == (tmp_path / "site" / tar).read_bytes() != (first / tar).read_bytes()
    open_dataset(first)
    assert first.name == hashlib.sha256((first / "dataset.json").read_bytes()).hexdigest()[:16]


def test_complete_copy_works_offline(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(original) as site:
        folder = fetch(data_config(site, tmp_path))
    capsys.readouterr()
    assert fetch(data_config(site, tmp_path)) == folder
    assert "offline: using the cached copy of" in capsys.readouterr().err
    (folder / TAR).unlink()
    assert "attempts" in fetch_error(data_config(site, tmp_path))


def test_eviction_removes_the_least_recently_used_but_not_in_use(tmp_path: Path) -> None:
    folders, urls = [], []
    sizes = []
    for seed in range(3):
        out = build(tmp_path / f"site{seed}", seed, train=20)
        sizes.append(sum(p.stat().st_size for p in out.iterdir() if p.suffix == ".tar"))
    with serve(tmp_path / "site0") as a, serve(tmp_path / "site1") as b, serve(tmp_path / "site2") as c:
        urls = [a.url, b.url, c.url]
        room = (sizes[0] + sizes[1] + sizes[2] * 0.5) / 1e9
        folders = [fetch(data_config(url, tmp_path)) for url in urls[:2]]
        os.utime(folders[0], (2e9, 2e9))  # used after the other
        third = fetch(data_config(urls[2], tmp_path, cache_size_gb=room))
        assert folders[0].exists() and not folders[1].exists() and third.exists()
        os.utime(folders[0], (1e9, 1e9))  # the least recently used, but in use by this process
        with (
            ensure_cached(data_config(urls[0], tmp_path), transfer=QUICK),
            ensure_cached(data_config(urls[2], tmp_path)),
        ):
            assert "in use by other runs" in fetch_error(data_config(urls[1], tmp_path, cache_size_gb=room))
            open_dataset(folders[0])
        assert "data.cache_size_gb" in fetch_error(data_config(urls[1], tmp_path, cache_size_gb=1e-6))


def test_locks_are_held_while_reading(site: Site, tmp_path: Path) -> None:
    with ensure_cached(data_config(site, tmp_path), transfer=QUICK) as folder:
        path = tmp_path / "cache" / "locks" / f"{folder.name}.use"
        with path.open("a") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
