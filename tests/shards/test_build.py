"""The build command: workers, interruptions, Ray, and its output."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from adadf_dist.data.dataset import open_dataset
from adadf_dist.errors import UserError
from shards.build import main as build_main
from shards.build import parse_arguments, summary
from shards.verify import main as verify_main
from shards.verify import verify
from tests.helpers.dataset_builds import ROOT, build_folder, run_build, tree
from tests.helpers.waiting import wait_until

# The commands


def run_program(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_commands_build_and_verify(image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    done = run_program(
        "shards.build", "folder", "--root", image_folder, "--out", out, "--test-fraction", 0.2, "--num-workers", 1
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert done.stdout == summary(open_dataset(out)) + "\n"
    assert "validation" in done.stdout
    checked = run_program("shards.verify", out, "--num-workers", 1)
    assert checked.returncode == 0, checked.stdout
    assert "train" in checked.stdout


def test_command_errors_are_one_line(image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = build_folder(image_folder).folder
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        build_main(["folder", "--root", str(image_folder), "--out", str(out)])
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        f"shards.build: error: {out}: dataset already exists; pass --overwrite to replace it, or choose another --out"
    ]
    (out / "train-000000.idx").unlink()
    with pytest.raises(SystemExit) as stop:
        verify_main([str(out), "--num-workers", "1"])
    assert stop.value.code == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{out / 'train-000000.idx'}: missing; without this index, DALI must scan the tar",
        f"{out}: 1 finding",
    ]
    with pytest.raises(SystemExit) as stop:
        verify_main([str(image_folder)])
    assert stop.value.code == 2


def descendants(process: int) -> set[int]:
    children = set(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))
    return children.union(*map(descendants, children))


def test_killed_build_leaves_no_dataset_and_no_process(tmp_path: Path) -> None:
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    words = ["shards.build", "synthetic", "--out", out, "--num-workers", 2, "--train", 10**6]
    with subprocess.Popen([sys.executable, "-m", *map(str, words)], cwd=ROOT, stderr=subprocess.DEVNULL) as build:
        wait_until(lambda: len(list(partial.glob("*.tar"))) == 2)
        workers = descendants(build.pid)
        assert len(workers) > 2
        build.kill()
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    assert not out.exists()
    few = ("--train", 5, "--validation", 0, "--test", 0)
    if list((partial / ".state").glob("train-*.json")):
        with pytest.raises(UserError, match="unfinished build with different settings"):
            run_build("synthetic", out, *few)
    dataset = run_build("synthetic", out, *few, "--discard-partial")
    assert not partial.exists()
    assert sorted(path.name for path in dataset.folder.glob("*.tar")) == ["train-000000.tar"]


def test_killed_build_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    counts = ("--train", 600, "--validation", 50, "--test", 50, "--image-size", 32, "--samples-per-shard", 50)
    whole = tree(run_build("synthetic", tmp_path / "whole", *counts, "--name", "faces").folder)
    out, notes = tmp_path / "out", tmp_path / "out.partial" / ".state"
    words = ["shards.build", "synthetic", "--out", out, "--num-workers", 2, *counts, "--name", "faces"]
    for number in (1, 3):
        with subprocess.Popen([sys.executable, "-m", *map(str, words)], cwd=ROOT, stderr=subprocess.DEVNULL) as build:
            wait_until(lambda wanted=number: len(list(notes.glob("train-*.json"))) >= wanted)  # type: ignore[misc]
            build.kill()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out.partial").glob("*.tar")}
    assert kept
    assert tree(run_build("synthetic", out, *counts, "--name", "faces").folder) == whole


@pytest.mark.slow
def test_ray_builds_the_same_bytes(tmp_path: Path) -> None:
    counts = (
        "--train",
        40,
        "--validation",
        5,
        "--test",
        5,
        "--image-size",
        32,
        "--samples-per-shard",
        10,
        "--name",
        "faces",
    )
    plain = run_build("synthetic", tmp_path / "plain", *counts)
    spread = run_build("synthetic", tmp_path / "spread", *counts, "--ray", "local")
    assert tree(spread.folder) == tree(plain.folder)


def test_help_lists_sources_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in ((["--help"], "synthetic"), (["fer2013", "--help"], "PublicTest becomes test")):
        with pytest.raises(SystemExit) as stop:
            parse_arguments(words)
        assert stop.value.code == 0
        assert expected in capsys.readouterr().out


def test_output_above_the_source_is_rejected(image_folder: Path) -> None:
    with pytest.raises(UserError, match="contains the source"):
        run_build("folder", image_folder.parent, "--root", image_folder, "--overwrite")


def test_synthetic_faces_are_built_from_the_command_line(tmp_path: Path) -> None:
    counts = ("--train", 12, "--validation", 0, "--test", 3, "--image-size", 32)
    dataset = run_build("synthetic", tmp_path / "out", *counts)
    assert {name: info.samples for name, info in dataset.splits.items()} == {"train": 12, "test": 3}
    assert verify(dataset.folder, 1)[1] == []
    with pytest.raises(UserError, match="--train 0"):
        run_build("synthetic", tmp_path / "none", "--train", 0)
