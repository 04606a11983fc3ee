"""Downloads from a server with injected faults: retries, one-line errors, URL schemes."""

from __future__ import annotations

import shutil
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from adadf_dist.data.dataset import open_dataset
from adadf_dist.data.remote.cache import ensure_cached
from adadf_dist.data.remote.client import TransferCancelled
from tests.helpers.remote_datasets import (
    QUICK,
    TAR,
    assert_same_files,
    data_config,
    fetch,
    fetch_error,
    run_config,
    streamed,
)
from tests.helpers.remote_server import Fault, Site, serve

# only where the server stalls deliberately: a busy machine stalls too
SHORT_TIMEOUT = QUICK._replace(read_timeout_s=0.3)


def test_downloaded_dataset_equals_the_original_and_is_downloaded_once(
    site: Site, original: Path, tmp_path: Path
) -> None:
    transfer = QUICK._replace(chunk_bytes=2**20)
    folder = fetch(data_config(site, tmp_path), transfer)
    assert_same_files(folder, original)
    assert set(site.count().values()) == {1}
    assert len(site.count()) == 9
    here, there = open_dataset(folder).split("train"), open_dataset(original).split("train")
    assert all(bytes(here.read(n)) == bytes(there.read(n)) for n in range(60))
    assert fetch(data_config(site, tmp_path), transfer) == folder
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
    assert_same_files(fetch(data_config(site, tmp_path), SHORT_TIMEOUT if fault.stall_s else QUICK), original)
    assert fault.times == 0


def test_complete_files_are_kept_and_others_fetched_whole(site: Site, original: Path, tmp_path: Path) -> None:
    """Also where a killed fetch left a part, longer than the file: an older version resumed it."""
    folder = fetch(data_config(site, tmp_path))
    (folder / TAR).unlink()
    (folder / f"{TAR}.partial").write_bytes(bytes(2 * (original / TAR).stat().st_size))
    site.asked.clear()
    site.faults = [Fault(TAR, 3, cut=0.6)]
    assert_same_files(fetch(data_config(site, tmp_path)), original)
    assert site.asked == [("dataset.json", "")] + 4 * [(TAR, "")]


def test_a_failed_fetch_leaves_no_part(site: Site, tmp_path: Path) -> None:
    site.faults = [Fault(TAR, 99, cut=0.6)]
    assert TAR in fetch_error(data_config(site, tmp_path))
    assert not list((tmp_path / "cache").rglob("*.partial"))
    assert not list((tmp_path / "cache").rglob(TAR))


def test_server_without_ranges_is_supported(site: Site, original: Path, tmp_path: Path) -> None:
    site.ranges = False
    assert_same_files(fetch(data_config(site, tmp_path)), original)


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
    message = fetch_error(data_config(site, tmp_path), SHORT_TIMEOUT if fault.stall_s else QUICK)
    assert site.url in message
    assert all(word in message for word in words), message


def test_connection_refused_and_unknown_host_are_one_line(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/faces"
        message = fetch_error(data_config(url, tmp_path))
    assert url in message and "4 attempts" in message
    message = fetch_error(data_config("http://no-such-host.invalid/faces", tmp_path))
    assert "no-such-host.invalid" in message and "4 attempts" in message


def test_url_schemes_are_checked(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "ftp:// is not supported" in fetch_error(data_config("ftp://x/faces", tmp_path))
    assert "without a query" in fetch_error(data_config("https://x/faces?sign=1", tmp_path))
    assert fetch(data_config(f"file://{original}", tmp_path)) == original
    assert fetch(data_config(str(original), tmp_path)) == original
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'adadf_dist[remote]'" in fetch_error(data_config("gs://bucket/faces", tmp_path))


def test_invalid_manifest_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "dataset.json").write_text("<html>log in</html>")
    with serve(tmp_path / "bad") as site:
        message = fetch_error(data_config(site, tmp_path))
        assert f"{site.url}/dataset.json: corrupt" in message
    assert not list((tmp_path / "cache" / "entries").iterdir())


def test_tar_shorter_than_its_manifest_is_one_line(original: Path, tmp_path: Path) -> None:
    shutil.copytree(original, tmp_path / "short")
    with (tmp_path / "short" / TAR).open("r+b") as stream:
        stream.truncate(9000)
    with serve(tmp_path / "short") as site:
        message = fetch_error(data_config(site, tmp_path))
    assert TAR in message and "re-upload the dataset" in message


def test_cancel_ends_a_download_soon(site: Site, tmp_path: Path) -> None:
    site.faults = [Fault("tar", 99, status=500)]
    cancelled = threading.Event()
    threading.Timer(0.3, cancelled.set).start()
    patient = QUICK._replace(attempts=50, initial_backoff_s=3600)
    with (
        pytest.raises(TransferCancelled),
        ensure_cached(data_config(site, tmp_path), cancelled=cancelled, transfer=patient),
    ):
        pass


def test_progress_bar_counts_bytes(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ensure_cached(data_config(site, tmp_path), bar=True, transfer=QUICK):
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
    assert_same_files(fetch(data_config("s3://bucket/sets/faces", tmp_path)), original)
    assert "not found" in fetch_error(data_config("s3://bucket/sets/other", tmp_path))
    config = run_config("s3://bucket/sets/faces", tmp_path, data__access="stream", data__num_workers=1)
    assert Counter(streamed(config, 0, 1)) == Counter(range(60))
