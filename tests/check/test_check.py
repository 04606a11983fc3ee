"""The pre-flight check: healthy and faulty environments, and no files left behind."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from adadf_dist import train
from adadf_dist.check import dataset as check_dataset
from adadf_dist.check import run_dir, throughput
from adadf_dist.check.__main__ import HELP, main
from adadf_dist.check.dataset import DatasetInfo
from adadf_dist.check.environment import RankInfo, check_clocks, check_threads, clock_offsets, judge_ranks
from adadf_dist.check.throughput import check_batch
from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.data.datamodule import check_batch_per_rank
from adadf_dist.data.dataset import open_dataset
from adadf_dist.data.sampling import split_batches
from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError
from adadf_dist.findings import Finding, Severity
from tests.helpers.forked import train_forked, two_nodes
from tests.helpers.ranks import run_ranks, single_process_world
from tests.helpers.remote_server import serve
from tests.helpers.runs import command, settings, start
from tests.helpers.waiting import communicate

CORES = len(os.sched_getaffinity(0))
MODULE = ("-m", "adadf_dist.check.__main__")
BY_THE_CLOCK = {"control", "step", "memory", "time"}
"""Lines whose verdict rests on how busy this machine is."""


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks in this process measure for fractions of a second: no speed is asserted."""
    monkeypatch.setattr(throughput, "BUDGET_S", 0.5)
    monkeypatch.setattr(check_dataset, "READ_S", 0.2)
    monkeypatch.setattr(check_dataset, "LOADER_S", 0.4)


def read_page(output: str) -> dict[str, tuple[str, str]]:
    """Name -> (verdict, text) of each line of the page."""
    lines = [line for line in output.splitlines() if line.split(" ")[0] in ("ok", "warning", "error")]
    return {line[9:20].strip(): (line.split(" ")[0], line[21:]) for line in lines}


def status_of(page: Mapping[str, tuple[str, str]]) -> int:
    return max(["ok", "warning", "error"].index(verdict) for verdict, _ in page.values())


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def check(values: dict[str, str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, tuple[str, str]]]:
    """Exit status and page of a check in this process."""
    words = [word for key, value in values.items() for word in (f"--{key}", value)]
    with pytest.raises(SystemExit) as ended:
        main(["--preset", "rafdb", *words])
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    page = read_page(output.out)
    assert ended.value.code == status_of(page)
    return int(str(ended.value.code)), page


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_healthy_environment_passes(ranks: int, faces: Path, tmp_path: Path) -> None:
    before = files_below(faces)
    values = settings(faces, tmp_path / "runs" / "long", loss__epoch_threshold="2")
    threads = str(max(1, CORES // ranks))
    done = train_forked(values, ranks, module="adadf_dist.check.__main__", OMP_NUM_THREADS=threads)
    page = read_page(done.stdout)
    exchange = ["clocks", "control", "all-reduce"] if ranks > 1 else ["network"]
    rest = ["workers", "shards", "schedule", "reading", "loader", "run folder", "batch", "step", "memory", "time"]
    assert list(page) == ["versions", "ranks", "threads", *exchange, *rest], done.stdout + done.stderr
    assert {name for name, (verdict, _) in page.items() if verdict != "ok"} <= BY_THE_CLOCK, done.stdout
    assert done.returncode == status_of(page)
    assert "Traceback" not in done.stderr
    assert "64 training and 20 validation samples, 7 classes" in page["shards"][1]
    assert page["schedule"] == ("ok", "8 steps (2 x 4)")
    shares = {1: "1 rank: 16 per rank; at most 8 ranks", 2: "2 ranks: 8 per rank; at most 8 ranks"}
    assert page["batch"][1] == f"16 samples over {shares[ranks]}"
    assert done.stdout.splitlines()[-1].startswith("ready to train")
    assert all(f"\n  {name} " in HELP for name in page if name != "network")
    assert not list(tmp_path.iterdir())
    assert files_below(faces) == before


def test_ctrl_c_ends_the_check(faces: Path, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        process = start(command(settings(faces, tmp_path / "out"), 1, MODULE))
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        assert process.stdout is not None
        while " batch " not in (line := process.stdout.readline()):  # the steps are next
            assert line, "the page ended early"
        process.send_signal(signal.SIGINT)
        _, errors = communicate(process, 20)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "error: interrupted" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_deepspeed_run_is_checked(faces: Path, tmp_path: Path) -> None:
    own = tmp_path / "ds.json"
    own.write_text('{"zero_optimization": {"overlap_comm": true}}')
    values = settings(faces, tmp_path / "out", engine="deepspeed", deepspeed__config_file=str(own))
    done = train_forked(values, module="adadf_dist.check.__main__")
    page = read_page(done.stdout)
    assert page["step"][0] in ("ok", "warning"), done.stdout + done.stderr
    assert "images/s" in page["step"][1]


def test_unsupported_engine_fails(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, page = check(settings(faces, tmp_path / "out", runtime__compile="reduce-overhead"), capsys)
    assert status == 2
    assert page["settings"][0] == "error"
    assert "runtime.compile is reduce-overhead, but the device is cpu" in page["settings"][1]


def test_missing_shards_fail(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, page = check(settings(tmp_path / "nowhere", tmp_path / "out"), capsys)
    assert status == 2
    assert page["shards"] == ("error", f"{tmp_path / 'nowhere'}: no such dataset folder")
    assert page["run folder"][0] == "ok"  # the other checks continue where possible
    assert not {"step", "time", "loader"} & page.keys()
    assert not list(tmp_path.iterdir())


def test_unwritable_run_folder_fails(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    status, page = check(settings(faces, tmp_path / "file" / "out"), capsys)
    assert status == 2
    assert page["run folder"] == ("error", f"--out {tmp_path / 'file' / 'out'}: not writable (Not a directory)")
    assert page["time"][0] in ("ok", "warning")


def test_user_files_in_run_folder_are_kept(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder with a handwritten config is also given as --out; again when it holds a run."""
    own = tmp_path / "experiment"
    own.mkdir()
    (own / "config.yaml").write_text("epochs: 1\n")
    values = settings(faces, own)
    status, page = check(values, capsys)
    assert status == 2 and "would replace its config.yaml" in page["run folder"][1]
    with pytest.raises(UserError, match="a run would replace its config"):
        train.run(build_config([ConfigLayer("test", values)]))
    assert {path.name: path.read_text() for path in own.iterdir()} == {"config.yaml": "epochs: 1\n"}
    (own / "run_info.json").write_text("{}")  # now it belongs to a run
    assert check(values, capsys)[1]["run folder"][0] == "ok"


def test_batch_smaller_than_ranks_fails(faces: Path, tmp_path: Path) -> None:
    done = train_forked(settings(faces, tmp_path / "out", batch_size="3"), 2, module="adadf_dist.check.__main__")
    page = read_page(done.stdout)
    assert done.returncode == 2
    assert page["batch"] == ("error", "batch_size 3 is too small for 2 ranks: a step needs 2 samples per rank")
    assert "-> raise batch_size to 4" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("not ready to train")
    assert "step" not in page


@pytest.mark.parametrize(("samples", "raised"), [(7, False), (65, True)])
def test_larger_batch_is_advised_only_where_it_helps(samples: int, raised: bool) -> None:
    """Four ranks need batches of 8: 7 samples cannot fill one; 65 samples in batches of 6 give 11 of 5 or 6."""
    batches = split_batches(np.arange(samples), 16 if samples < 8 else 6)
    config = build_config([ConfigLayer("test", {"batch_size": 16})])
    world: Any = SimpleNamespace(size=4)
    line = check_batch(config, world, DatasetInfo(7, samples, 0, tuple(map(len, batches))))
    assert line.severity is Severity.ERROR and ("raise batch_size" in line.hint) is raised
    data: Any = SimpleNamespace(_plan=lambda epoch: batches)
    with pytest.raises(UserError) as output:
        check_batch_per_rank(data, 4)
    assert ("raise batch_size" in str(output.value)) is raised and "start fewer ranks" in str(output.value)


@pytest.mark.parametrize(("keep", "lowered"), [(1, False), (2, True)])
def test_fewer_checkpoints_are_advised_only_where_some_are_saved(
    keep: int, lowered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1))
    values = {"checkpoint.keep_last": keep, "model.backbone": "resnet10", "out": str(tmp_path)}
    line = run_dir.check_run_dir_space(build_config([ConfigLayer("test", values)]), tmp_path, 7, 64)
    assert line.severity is Severity.ERROR and ("checkpoint.keep_last" in line.hint) is lowered


def test_undecodable_image_fails(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(faces, tmp_path / "faces")
    split = open_dataset(tmp_path / "faces").split("train")
    encoded = bytes(split.read(0))
    tar = next((tmp_path / "faces").glob("train-*.tar"))
    tar.write_bytes(tar.read_bytes().replace(encoded, b"\xff" * len(encoded)))
    status, page = check(settings(tmp_path / "faces", tmp_path / "out"), capsys)
    assert status == 2
    assert page["reading"][0] == "error"
    assert str(split.keys[0]) in page["reading"][1]
    assert "shards.verify" in page["reading"][1]


def test_synthetic_dataset_is_not_rendered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = settings(tmp_path / "faces", tmp_path / "out")
    status, page = check({**values, "data.synthetic_samples": "[48, 16, 8]"}, capsys)
    assert status < 2
    assert page["shards"][1].endswith("not found; a run would generate 72 synthetic samples there")
    assert "an epoch of 48 samples" in page["time"][1]
    assert not list(tmp_path.iterdir())


def test_remote_dataset_is_probed_but_not_downloaded(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("aiohttp", reason="the remote extra is not installed")
    with serve(faces) as site:
        values = settings(Path("x"), tmp_path / "out", data__shards=site.url, data__cache_dir=str(tmp_path / "cache"))
        status, page = check(values, capsys)
        asked = {name.strip("/") for name, _ in site.asked}
    assert status < 2
    assert "64 training and 20 validation samples, 7 classes" in page["shards"][1]
    assert asked == {"dataset.json", "train-000000.tar"}
    assert not list(tmp_path.iterdir())


def test_incompatible_resume_fails(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder holds a run of another batch size; with the same size it resumes, and stays unchanged."""
    values = settings(faces, tmp_path / "out", epochs="1")
    train.run(build_config([ConfigLayer("test", values)]))
    config = build_config([ConfigLayer("preset", {}), ConfigLayer("test", values)])
    newest = next((tmp_path / "out" / "checkpoints").glob("checkpoint-*"))
    # the estimate against what a run wrote
    assert run_dir.checkpoint_bytes(config, 7, 64) == pytest.approx(newest.stat().st_size, rel=0.05)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    capsys.readouterr()
    status, page = check({**values, "epochs": "2", "batch_size": "32"}, capsys)
    assert status == 2
    assert "batch_size was 16 in the checkpoint but is 32 now" in page["run folder"][1]
    status, page = check({**values, "epochs": "2"}, capsys)
    assert status < 2
    assert "contains a run with 1 finished epochs (will resume)" in page["run folder"][1]
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_disk_space_for_checkpoints_is_checked(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = build_config([ConfigLayer("test", settings(faces, tmp_path / "out"))])
    one = run_dir.checkpoint_bytes(config, 7, 64)

    def judged(free: float) -> Severity:
        monkeypatch.setattr(run_dir.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free}))
        return run_dir.check_folder(config, single_process_world(), 7, 64).severity

    # two kept ones, the selected one, and the one being written
    assert [judged(3.9 * one), judged(4.1 * one), judged(8.1 * one)] == [Severity.ERROR, Severity.WARNING, Severity.OK]


@pytest.mark.slow
def test_two_nodes_without_a_shared_run_folder_fail(faces: Path, tmp_path: Path) -> None:
    nodes = tmp_path / "node-a", tmp_path / "node-b"
    for node in nodes:
        node.mkdir()
    (status, output), _ = two_nodes(nodes, settings(faces, Path("runs/mine")), "adadf_dist.check.__main__")
    page = read_page(output)
    assert status != 0
    assert page["ranks"][1].startswith("2 ranks on 2 nodes")
    assert page["run folder"][0] == "error"
    assert f"not visible on {page['ranks'][1].split(': ')[1].split(' ')[0]} (rank 1)" in page["run folder"][1]
    assert [list(node.iterdir()) for node in nodes] == [[], []]


def skewed(world: World, ahead_s: float) -> list[float]:
    return clock_offsets(world, lambda: time.time() + ahead_s * world.rank)


@pytest.mark.parametrize(
    ("ahead_s", "output"),
    [
        (5.0, "the clock of b is 5.0 s ahead of"),
        pytest.param(-3.0, "the clock of b is 3.0 s behind", marks=pytest.mark.slow),
    ],
)
def test_clock_skew_is_reported(ahead_s: float, output: str) -> None:
    for offsets in run_ranks(skewed, 2, ahead_s):
        assert offsets == pytest.approx([0, ahead_s], abs=0.5)
        line = check_clocks(offsets, ["a", "b"])
        assert line.severity is Severity.WARNING
        assert line.message.startswith(output)
    assert check_clocks([0.0, 0.4], ["a", "b"]).severity is Severity.OK


def ranks_on(nodes: int, each: int, **more: object) -> list[RankInfo]:
    usual: dict[str, object] = {
        "device": "cpu",
        "gpus": 0,
        "gpu_not_visible": False,
        "threads": 1,
        "cores": 8,
        "memory": 1,
    }
    return [
        RankInfo(**{"label": f"n{n} (rank {n * each + i})", "host": f"n{n}", "local_rank": i, **usual, **more})  # type: ignore[arg-type]
        for n in range(nodes)
        for i in range(each)
    ]


def test_idle_gpus_and_cores_are_named() -> None:
    line = judge_ranks(ranks_on(2, 4, device="H", gpus=8))
    assert line == Finding(
        "ranks",
        Severity.WARNING,
        "8 ranks on 2 nodes: n0 4 x H, n1 4 x H; unused GPUs on n0, n1",
        "start with --nproc_per_node 8 to use all of them",
    )
    assert judge_ranks(ranks_on(2, 8, device="H", gpus=8)).severity is Severity.OK
    assert judge_ranks(ranks_on(1, 1, gpu_not_visible=True)).severity is Severity.WARNING
    assert check_threads(ranks_on(1, 2), 2).hint.startswith("set OMP_NUM_THREADS=4 ")  # 2 of 8 cores compute
    assert check_threads(ranks_on(1, 2, threads=4), 2).severity is Severity.OK
    assert check_threads(ranks_on(1, 4, threads=4), 2).hint == "set OMP_NUM_THREADS=2"  # 16 threads on 8 cores
    assert check_threads(ranks_on(1, 8, device="H"), 2).hint == "pass --data.num_workers 1"


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    output = capsys.readouterr().out
    assert "torchrun" in output
    assert "Exit status: 0 ok, 1 warnings, 2 errors" in output


def test_unknown_option_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--batch_sise", "3"])
    assert ended.value.code == 2
    assert "did you mean --batch_size?" in capsys.readouterr().err
