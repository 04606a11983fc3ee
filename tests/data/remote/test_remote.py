"""Remote datasets from a server with injected faults: cache, eviction, offline use, streaming."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.config.schema import Config, DataConfig
from adadf_dist.data.batch import Batch
from adadf_dist.data.build.builder import BuildOptions, build_dataset
from adadf_dist.data.datamodule import open_data
from adadf_dist.data.dataset import open_dataset
from adadf_dist.data.loaders.streaming import StreamPlan
from adadf_dist.data.prepare import local_shards
from adadf_dist.data.remote.cache import ensure_cached
from adadf_dist.data.remote.client import Remote, RetryPolicy, TransferCancelled
from adadf_dist.data.synthetic.dataset import make_synthetic_source
from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError
from tests.helpers.forked import train_forked
from tests.helpers.ranks import run_ranks
from tests.helpers.remote_server import Fault, Site, serve
from tests.helpers.runs import ROOT, environment, finish, numbers, settings
from tests.helpers.waiting import communicate, wait_until

QUICK = RetryPolicy(attempts=4, initial_backoff_s=0.01, read_timeout_s=20, chunk_bytes=4096)
HASTY = QUICK._replace(read_timeout_s=0.3)  # only where the server stalls deliberately: a busy machine stalls too
CPU = torch.device("cpu")
TAR = "train-000001.tar"


def build(out: Path, seed: int = 0, **counts: int) -> Path:
    source = make_synthetic_source(counts or {"train": 60, "validation": 12, "test": 10}, 32, seed)
    build_dataset(source, out, BuildOptions(name="drawn", seed=seed, samples_per_shard=20))
    return out


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 training faces in 3 tars, 12 for validation, 10 for test."""
    return build(tmp_path_factory.mktemp("remote") / "faces")


@pytest.fixture
def site(original: Path) -> Iterator[Site]:
    with serve(original) as site:
        yield site


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def data(site: Site | str, tmp_path: Path, **more: object) -> DataConfig:
    url = site if isinstance(site, str) else site.url
    return DataConfig(shards=url, cache_dir=str(tmp_path / "cache"), **more)  # type: ignore[arg-type]


def fetch(config: DataConfig, transfer: RetryPolicy = QUICK) -> Path:
    with ensure_cached(config, transfer=transfer) as folder:
        return folder


def same_files(folder: Path, original: Path) -> None:
    """Assert that every file of dataset.json exists with equal bytes."""
    names = [p.name for p in original.iterdir() if p.suffix in (".tar", ".parquet") or p.name == "dataset.json"]
    assert len(names) == 9
    for name in names:
        assert (folder / name).read_bytes() == (original / name).read_bytes(), name
    assert not list(folder.glob("*.partial"))


def refused(config: DataConfig, transfer: RetryPolicy = QUICK) -> str:
    with pytest.raises(UserError) as caught:
        fetch(config, transfer)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_downloaded_dataset_equals_the_original_and_is_downloaded_once(
    site: Site, original: Path, tmp_path: Path
) -> None:
    transfer = QUICK._replace(chunk_bytes=2**20)
    folder = fetch(data(site, tmp_path), transfer)
    same_files(folder, original)
    assert set(site.count().values()) == {1}
    assert len(site.count()) == 9
    here, there = open_dataset(folder).split("train"), open_dataset(original).split("train")
    assert all(bytes(here.read(n)) == bytes(there.read(n)) for n in range(60))
    assert fetch(data(site, tmp_path), transfer) == folder
    assert site.count() == Counter(dict.fromkeys(site.count(), 1)) + Counter({"dataset.json": 1})


@pytest.mark.parametrize(
    "fault",
    [
        Fault("train", 2, cut=0.6),
        Fault("dataset.json", 3, status=500),
        Fault("train", 2, status=503),
        Fault("parquet", 1, wrong=True),
        Fault(TAR, 1, wrong=True),
        Fault(TAR, 1, stall_s=1.5),
        Fault("validation", 1, status=429),
    ],
    ids=lambda f: f"{f.pattern}-{f.status}-{f.cut}-{f.wrong}-{f.stall_s}",
)
def test_transient_faults_are_retried(site: Site, original: Path, tmp_path: Path, fault: Fault) -> None:
    site.faults = [fault]
    same_files(fetch(data(site, tmp_path), HASTY if fault.stall_s else QUICK), original)
    assert fault.times == 0


def test_complete_files_are_kept_and_others_fetched_whole(site: Site, original: Path, tmp_path: Path) -> None:
    """Also where a killed fetch left a part, longer than the file: an older version resumed it."""
    folder = fetch(data(site, tmp_path))
    (folder / TAR).unlink()
    (folder / f"{TAR}.partial").write_bytes(bytes(2 * (original / TAR).stat().st_size))
    site.asked.clear()
    site.faults = [Fault(TAR, 3, cut=0.6)]
    same_files(fetch(data(site, tmp_path)), original)
    assert site.asked == [("dataset.json", "")] + 4 * [(TAR, "")]


def test_a_failed_fetch_leaves_no_part(site: Site, tmp_path: Path) -> None:
    site.faults = [Fault(TAR, 99, cut=0.6)]
    assert TAR in refused(data(site, tmp_path))
    assert not list((tmp_path / "cache").rglob("*.partial"))
    assert not list((tmp_path / "cache").rglob(TAR))


def test_server_without_ranges_is_supported(site: Site, original: Path, tmp_path: Path) -> None:
    site.ranges = False
    same_files(fetch(data(site, tmp_path)), original)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("dataset.json", 99, status=404), ["dataset.json", "not found", "shards.build"]),
        (Fault("dataset.json", 99, status=403), ["access refused (403)", "credentials"]),
        (Fault("dataset.json", 99, status=500), ["answered 500", "4 attempts"]),
        (Fault(TAR, 99, status=404), [TAR, "re-upload the dataset"]),
        (Fault(TAR, 99, status=502), [TAR, "answered 502", "4 attempts"]),
        (Fault(TAR, 99, wrong=True), [TAR, "checksum mismatch", "4 attempts", "re-upload"]),
        (Fault(TAR, 99, stall_s=2), [TAR, "timed out", "4 attempts"]),
        (Fault("parquet", 99, cut=0.5), ["parquet", "4 attempts"]),
    ],
    ids=lambda x: f"{x.pattern}-{x.status}-{x.cut}-{x.wrong}" if isinstance(x, Fault) else "",
)
def test_permanent_fault_is_one_line(site: Site, tmp_path: Path, fault: Fault, words: list[str]) -> None:
    site.faults = [fault]
    message = refused(data(site, tmp_path), HASTY if fault.stall_s else QUICK)
    assert site.url in message
    assert all(word in message for word in words), message


def test_connection_refused_and_unknown_host_are_one_line(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/faces"
        message = refused(data(url, tmp_path))
    assert url in message and "4 attempts" in message
    message = refused(data("http://no-such-host.invalid/faces", tmp_path))
    assert "no-such-host.invalid" in message and "4 attempts" in message


def test_url_schemes_are_checked(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "ftp:// is not supported" in refused(data("ftp://x/faces", tmp_path))
    assert "without a query" in refused(data("https://x/faces?sign=1", tmp_path))
    assert fetch(data(f"file://{original}", tmp_path)) == original
    assert fetch(data(str(original), tmp_path)) == original
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'adadf_dist[remote]'" in refused(data("gs://bucket/faces", tmp_path))


def test_invalid_manifest_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "dataset.json").write_text("<html>log in</html>")
    with serve(tmp_path / "bad") as site:
        message = refused(data(site, tmp_path))
        assert f"{site.url}/dataset.json: corrupt" in message
    assert not list((tmp_path / "cache" / "entries").iterdir())


def test_tar_shorter_than_its_manifest_is_one_line(original: Path, tmp_path: Path) -> None:
    shutil.copytree(original, tmp_path / "short")
    with (tmp_path / "short" / TAR).open("r+b") as stream:
        stream.truncate(9000)
    with serve(tmp_path / "short") as site:
        message = refused(data(site, tmp_path))
    assert TAR in message and "re-upload the dataset" in message


def test_unwritable_cache_is_one_line(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file")
    assert "cannot be written" in refused(data(site, tmp_path))
    (tmp_path / "cache").unlink()
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    assert "are free; free some" in refused(data(site, tmp_path))


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
    same_files(Path(outputs[0][0].decode().strip()), original)
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
    same_files(fetch(data(site, tmp_path)), original)


def test_cancel_ends_a_download_soon(site: Site, tmp_path: Path) -> None:
    site.faults = [Fault("tar", 99, status=500)]
    cancelled = threading.Event()
    threading.Timer(0.3, cancelled.set).start()
    patient = QUICK._replace(attempts=50, initial_backoff_s=3600)
    with pytest.raises(TransferCancelled), ensure_cached(data(site, tmp_path), cancelled=cancelled, transfer=patient):
        pass


def test_changed_dataset_is_a_new_cache_entry(tmp_path: Path) -> None:
    build(tmp_path / "site", train=10)
    with serve(tmp_path / "site") as site:
        first = fetch(data(site, tmp_path))
        shutil.rmtree(tmp_path / "site")
        build(tmp_path / "site", seed=1, train=10)
        second = fetch(data(site, tmp_path))
    assert first != second
    tar = "train-000000.tar"
    assert (second / tar).read_bytes() == (tmp_path / "site" / tar).read_bytes() != (first / tar).read_bytes()
    open_dataset(first)
    assert first.name == hashlib.sha256((first / "dataset.json").read_bytes()).hexdigest()[:16]


def test_complete_copy_works_offline(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(original) as site:
        folder = fetch(data(site, tmp_path))
    capsys.readouterr()
    assert fetch(data(site, tmp_path)) == folder
    assert "offline: using the cached copy of" in capsys.readouterr().err
    (folder / TAR).unlink()
    assert "attempts" in refused(data(site, tmp_path))


def test_eviction_removes_the_least_recently_used_but_not_in_use(tmp_path: Path) -> None:
    folders, urls = [], []
    sizes = []
    for seed in range(3):
        out = build(tmp_path / f"site{seed}", seed, train=20)
        sizes.append(sum(p.stat().st_size for p in out.iterdir() if p.suffix == ".tar"))
    with serve(tmp_path / "site0") as a, serve(tmp_path / "site1") as b, serve(tmp_path / "site2") as c:
        urls = [a.url, b.url, c.url]
        room = (sizes[0] + sizes[1] + sizes[2] * 0.5) / 1e9
        folders = [fetch(data(url, tmp_path)) for url in urls[:2]]
        os.utime(folders[0], (2e9, 2e9))  # used after the other
        third = fetch(data(urls[2], tmp_path, cache_size_gb=room))
        assert folders[0].exists() and not folders[1].exists() and third.exists()
        os.utime(folders[0], (1e9, 1e9))  # the least recently used, but in use by this process
        with ensure_cached(data(urls[0], tmp_path), transfer=QUICK), ensure_cached(data(urls[2], tmp_path)):
            assert "in use by other runs" in refused(data(urls[1], tmp_path, cache_size_gb=room))
            open_dataset(folders[0])
        assert "data.cache_size_gb" in refused(data(urls[1], tmp_path, cache_size_gb=1e-6))


def test_locks_are_held_while_reading(site: Site, tmp_path: Path) -> None:
    with ensure_cached(data(site, tmp_path), transfer=QUICK) as folder:
        path = tmp_path / "cache" / "locks" / f"{folder.name}.use"
        with path.open("a") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_progress_bar_counts_bytes(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ensure_cached(data(site, tmp_path), bar=True, transfer=QUICK):
        pass
    shown = capsys.readouterr().err
    assert "fetching shards: 100%" in shown
    assert "fetching 8 files" in shown


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    server = pytest.importorskip("moto.server", reason="moto is not installed").ThreadedMotoServer
    moto = server(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


def test_s3_dataset_is_downloaded(
    original: Path, tmp_path: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    files = s3fs.S3FileSystem(skip_instance_cache=True)
    files.mkdir("bucket")
    files.put(str(original) + "/", "bucket/sets/faces/", recursive=True)
    same_files(fetch(data("s3://bucket/sets/faces", tmp_path)), original)
    assert "not found" in refused(data("s3://bucket/sets/other", tmp_path))
    config = run_config("s3://bucket/sets/faces", tmp_path, data__access="stream", data__num_workers=1)
    assert Counter(streamed(config, 0, 1)) == Counter(range(60))


def run_config(shards: str, tmp_path: Path, **more: object) -> Config:
    values = {
        "data.shards": shards,
        "data.cache_dir": str(tmp_path / "cache"),
        "data.image_size": 32,
        "batch_size": 14,
        "data.shuffle_buffer": 8,
    }
    return build_config([ConfigLayer("test", values | {k.replace("__", "."): v for k, v in more.items()})])


def streamed(config: Config, rank: int, ranks: int, epoch: int = 0, first: int = 0) -> list[int]:
    with open_data(config, rank, ranks, CPU) as opened:
        return [s for batch in opened.train_batches(epoch, first) for s in batch.sample_ids.tolist()]


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 1), (2, 2), (3, 0)])
def test_streaming_visits_each_sample_once_in_equal_steps(
    site: Site, original: Path, tmp_path: Path, ranks: int, workers: int
) -> None:
    """Three tars over any number of workers: none runs dry, every rank has its slice of every global batch."""
    config = run_config(site.url, tmp_path, data__access="stream", data__num_workers=workers)
    split = open_dataset(original).split("train")
    everything: list[list[Batch]] = []
    for rank in range(ranks):
        with open_data(config, rank, ranks, CPU) as opened:
            batches = list(opened.train_batches(0))
            assert len(batches) == opened.num_batches(0) == 5
            everything.append(batches)
            evaluation = [s for batch in opened.val_batches() for s in batch.sample_ids.tolist()]
            assert len(set(evaluation)) == len(evaluation)
    for pieces in zip(*everything, strict=True):
        assert sum(len(p.labels) for p in pieces) == pieces[0].global_size == 12
        assert [p.offset for p in pieces] == [sum(len(p.labels) for p in pieces[:n]) for n in range(ranks)]
    seen = [s for batches in everything for b in batches for s in b.sample_ids.tolist()]
    assert Counter(seen) == Counter(range(60))
    for batch in everything[0]:
        assert batch.labels.tolist() == split.labels[batch.sample_ids.numpy()].tolist()
    assert not list((tmp_path / "cache").rglob("train*.tar*"))


def test_streamed_images_equal_cached_ones(site: Site, original: Path, tmp_path: Path) -> None:
    pictures = []
    for access in ("cache", "stream"):
        config = run_config(site.url if access == "stream" else str(original), tmp_path, data__access=access)
        with open_data(config, 0, 1, CPU) as opened:
            pictures.append(
                {s: i for b in opened.train_batches(1) for s, i in zip(b.sample_ids.tolist(), b.images, strict=True)}
            )
    assert pictures[0].keys() == pictures[1].keys() == set(range(60))
    assert all(torch.equal(pictures[0][n], pictures[1][n]) for n in range(60))


def test_streamed_order_is_shuffled_repeats_and_resumes(original: Path, tmp_path: Path) -> None:
    config = run_config(str(original), tmp_path, data__access="stream", data__num_workers=0)
    first, again, other = (streamed(config, 0, 1, epoch) for epoch in (0, 0, 1))
    assert first == again != other
    assert first != sorted(first)
    assert streamed(config, 0, 1, 0, first=2) == first[24:]


def test_runs_cover_every_epoch_exactly(original: Path) -> None:
    split = open_dataset(original).split("train")
    for ranks in (1, 2, 5):
        for lanes in (1, 3):
            for number in (0, 1):
                epoch = StreamPlan(split, [16, 15, 15, 14], 3, number)
                runs = [run for r in range(ranks) for n in range(lanes) for run in epoch.runs(r, ranks, n, lanes)]
                assert sorted(s for run in runs for s in run.samples.tolist()) == list(range(60))
                assert len(runs) <= 3 + ranks * lanes  # a tar is opened once, and again where a run starts in it
                size = {n: (original / name).stat().st_size for n, name in enumerate(split.shards)}
                assert all(0 <= run.start < run.end <= size[run.shard] for run in runs)


def test_streaming_retries_faults_and_names_permanent_ones(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adadf_dist.data.datamodule.Remote", lambda url: Remote(url, QUICK))
    config = run_config(site.url, tmp_path, data__access="stream", data__num_workers=1)
    site.faults = [Fault("train-.*tar", 2, cut=0.5), Fault("train-.*tar", 1, status=500)]
    assert sorted(streamed(config, 0, 1)) == list(range(60))
    site.faults = [Fault("train-.*tar", 999, status=500)]
    with pytest.raises(UserError, match=r"train-00000\d\.tar: the server answered 500 \(4 attempts"):
        streamed(config, 0, 1)
    site.faults = [Fault("train-.*tar", 999, wrong=True)]
    with pytest.raises(UserError, match="tar does not match its index"):
        streamed(config, 0, 1)


def test_unsupported_streaming_options_are_one_line(site: Site, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.sampler .* data\.access is stream"):
        run_config(site.url, tmp_path, data__access="stream", data__sampler="balanced")
    build(tmp_path / "two", train=20, test=5)
    config = run_config(str(tmp_path / "two"), tmp_path, data__access="stream")
    with pytest.raises(UserError, match="no validation split"), open_data(config, 0, 1, CPU):
        pass


def at_hand(world: World, urls: list[str], folder: str) -> list[tuple[str, list[str]]]:
    """For each URL: the error message, or the tars that are available."""
    os.environ["LOCAL_RANK"] = str(world.rank)
    found = []
    for url in urls:
        config = build_config([ConfigLayer("test", {"data.shards": url, "data.cache_dir": folder})])
        try:
            with local_shards(config, world) as shards:
                found.append(("", sorted(path.name for path in shards.iterdir() if path.suffix == ".tar")))
        except UserError as error:
            found.append((str(error), []))
    return found


def test_one_rank_downloads_and_fails_for_all(site: Site, tmp_path: Path) -> None:
    site.faults = [Fault("train-.*tar", 3, stall_s=1.5)]
    shutil.copytree(site.folder, tmp_path / "other")
    (tmp_path / "other" / "dataset.json").write_text((site.folder / "dataset.json").read_text() + "\n")
    with serve(tmp_path / "other") as forbidden:
        forbidden.faults = [Fault(TAR, 999, status=403)]
        one, two = run_ranks(at_hand, 2, [site.url, forbidden.url], str(tmp_path / "cache"))
    assert one == two
    (message, tars), (refusal, nothing) = one
    assert message == "" and len(tars) == 5
    assert set(site.count().values()) == {1}
    assert TAR in refusal and "access refused (403)" in refusal and "\n" not in refusal
    assert nothing == []


@pytest.mark.slow
def test_two_ranks_train_from_a_url(site: Site, original: Path, tmp_path: Path) -> None:
    """Each file is downloaded once per node, even if that exceeds the ranks' timeout; the run equals the local one."""
    site.faults = [Fault("train-.*tar", 3, stall_s=8)]
    values = settings(
        Path("x"), tmp_path / "run", epochs="1", runtime__timeout_s="6", data__cache_dir=str(tmp_path / "c")
    )
    done = train_forked({**values, "data.shards": site.url}, 2, timeout=120)
    assert done.returncode == 0, done.stderr
    assert set(site.count().values()) == {1}
    local = train_forked(settings(original, tmp_path / "local", epochs="1"), 2, timeout=120)
    assert local.returncode == 0, local.stderr
    assert numbers(tmp_path / "run", "step") == numbers(tmp_path / "local", "step")


@pytest.mark.slow
def test_two_ranks_end_soon_when_one_download_fails(site: Site, tmp_path: Path) -> None:
    site.faults = [Fault(TAR, 999, status=403)]
    values = settings(Path("x"), tmp_path / "run", data__cache_dir=str(tmp_path / "c"), runtime__timeout_s="600")
    done = train_forked({**values, "data.shards": site.url}, 2, timeout=60)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith(("adadf_dist.train:", "adadf_dist.train["))]
    assert lines and all("access refused (403)" in line and TAR in line for line in lines), done.stderr


@pytest.mark.slow
def test_two_ranks_train_from_a_stream(site: Site, tmp_path: Path) -> None:
    values = settings(Path("x"), tmp_path / "run", data__cache_dir=str(tmp_path / "c"), data__access="stream")
    values |= {"data.shards": site.url, "data.num_workers": "2"}
    done = train_forked(values, 2, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "training tars are streamed" in done.stdout
    assert json.loads((tmp_path / "run" / "run_info.json").read_text())["access"]
    assert len(numbers(tmp_path / "run", "epoch")) == 2
