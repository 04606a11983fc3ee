"""Output options of every command: existing files are replaced only with --overwrite, folders are created."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch

from adadf_dist.checkpoint.run_dir import check_run_folder
from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError
from adadf_dist.files.outputs import atomic_file, check_output_folder, check_output_path
from adadf_dist.tracking.logger import open_logger
from tests.helpers import dataset_trees as trees
from tests.helpers.dataset_builds import run_build

COMMANDS = (
    "adadf_dist.audit.__main__",
    "benchmarks.__main__",
    "adadf_dist.data.synthetic.faces",
    "adadf_dist.evaluate.__main__",
    "adadf_dist.export.__main__",
    "adadf_dist.convert",
    "adadf_dist.predict.__main__",
    "adadf_dist.report.__main__",
    "adadf_dist.weights.__main__",
    "benchmarks.shard_build",
    "shards.build",
    "shards.doctor.__main__",
    "shards.verify",
    "tune.search",
    "tune.tables",
)
"""Commands with an argument parser. Those of training (train, check) take the keys of a configuration instead."""

INPUTS = {
    *("run", "runs", "folder", "path", "file", "model", "root", "csv", "ferplus", "relabel", "class_mapping", "shards"),
    *("reference_labels", "dir", "source_root", "source", "weights"),
}
"""Destinations of options whose path is read."""

FILES: dict[tuple[str, str], list[str]] = {
    **{
        (f"benchmarks.__main__ {name}", "--json"): ["benchmarks.__main__", *words]
        for name, words in {
            "loaders": ["loaders"],
            "step": ["step"],
            "epoch": ["epoch"],
            "scaling": ["scaling"],
            "comm-cost": ["comm-cost"],
            "audit": ["audit", "nowhere"],
            "face-probe": ["face-probe", "--weights", "nowhere", "--shards", "nowhere"],
        }.items()
    },
    ("benchmarks.__main__ loader-images", "--out"): ["benchmarks.__main__", "loader-images"],
    ("adadf_dist.data.synthetic.faces", "--out"): ["adadf_dist.data.synthetic.faces"],
    ("adadf_dist.evaluate.__main__", "--json"): ["adadf_dist.evaluate.__main__", "nowhere"],
    ("adadf_dist.export.__main__", "--onnx"): ["adadf_dist.export.__main__", "nowhere"],
    ("adadf_dist.export.__main__", "--safetensors"): ["adadf_dist.export.__main__", "nowhere"],
    ("adadf_dist.export.__main__", "--torch-export"): ["adadf_dist.export.__main__", "nowhere"],
    ("adadf_dist.export.__main__", "--model-card"): ["adadf_dist.export.__main__", "nowhere", "--onnx", "x.onnx"],
    ("adadf_dist.convert", "--out"): ["adadf_dist.convert", "nowhere", "--classes", "a,b"],
    ("adadf_dist.predict.__main__", "--out"): ["adadf_dist.predict.__main__", "nowhere", "nothing"],
    ("adadf_dist.report.__main__", "--out"): ["adadf_dist.report.__main__", "nowhere"],
    ("adadf_dist.weights.__main__ dlib", "--out"): ["adadf_dist.weights.__main__", "dlib", "--from", "nowhere"],
    ("shards.doctor.__main__", "--json"): ["shards.doctor.__main__", "nowhere"],
    ("shards.doctor.__main__", "--html"): ["shards.doctor.__main__", "nowhere"],
}
"""(parser, option) that names a file -> a command line whose work would fail: the file is refused before that."""

FOLDERS: dict[tuple[str, str], list[str]] = {
    ("adadf_dist.report.__main__", "--figures"): ["adadf_dist.report.__main__", "nowhere"],
    **{
        (f"shards.build {name}", "--out"): ["shards.build", name, *words]
        for name, words in {
            "affectnet": ["--root", "nowhere"],
            "rafdb": ["--root", "nowhere"],
            "sfew": ["--root", "nowhere"],
            "fer2013": ["--root", "nowhere"],
            "folder": ["--root", "nowhere"],
            "csv": ["--csv", "nowhere"],
            "synthetic": [],
        }.items()
    },
    ("tune.search", "--out"): ["tune.search", "--preset", "demo", "--local"],
    ("tune.tables", "--out"): ["tune.tables", "ablation", "--preset", "demo", "--local"],
}

ENDINGS = {"--onnx": ".onnx", "--safetensors": ".safetensors", "--torch-export": ".pt2", "--html": ".html"}


def name_of(key: tuple[str, str]) -> str:
    return " ".join(key).replace(".__main__", "")


def parser_of(module: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """The parser of a command, captured when it would parse."""
    found: list[argparse.ArgumentParser] = []

    def take(parser: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        found.append(parser)
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(argparse.ArgumentParser, "parse_args", take)
        patch.setattr(argparse.ArgumentParser, "parse_known_args", take)
        import_module(module).main([])
    return found[0]


def path_options(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, argparse.Action]]:
    """Every path option of a parser and its subcommands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command, below in action.choices.items():
                yield from path_options(below, f"{name} {command}")
        elif action.type is Path:
            yield name, action


@pytest.mark.parametrize("module", COMMANDS)
def test_every_path_option_is_an_input_or_a_tested_output(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = {*FILES, *FOLDERS}
    found = set()
    for name, action in path_options(parser_of(module, monkeypatch), module):
        if action.dest in INPUTS:
            continue
        assert action.option_strings, f"{name}: {action.dest} is neither an input nor tested below"
        found.add((name, action.option_strings[0]))
    assert found == {(name, option) for name, option in outputs if name.split()[0] == module}


def test_every_command_is_tested() -> None:
    root = Path(__file__).parents[2]
    users = {
        ".".join(path.relative_to(root).with_suffix("").parts)
        for package in ("adadf_dist", "shards", "tune", "benchmarks")
        for path in (root / package).rglob("*.py")
        if re.search(r"= ((argparse\.Argument)?Parser\(|make_parser\(\s*\")", path.read_text(encoding="utf-8"))
    }
    parsers = {"adadf_dist.evaluate.cli": "adadf_dist.evaluate.__main__", "tune.search_options": "tune.search"}
    found = {parsers.get(name, name) for name in users}
    others = {"adadf_dist.files.outputs", "adadf_dist.config.load", "benchmarks.scaling.worker"}
    write_nothing = {"benchmarks.measure_workers", "benchmarks.sample_texts", "benchmarks.simulate_verdicts"}
    assert found - others - write_nothing == set(COMMANDS)


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command ends."""
    with pytest.raises(SystemExit) as stop:
        import_module(words[0]).main(words[1:])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize("key", FILES, ids=name_of)
def test_existing_file_is_rejected_before_the_work(
    key: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"mine{ENDINGS.get(key[1], '.md' if key[1] == '--model-card' else '.png')}"
    path.write_text("mine")
    line = refused([*FILES[key], key[1], str(path)], capsys)
    assert str(path) in line
    assert "--overwrite" in line
    assert path.read_text() == "mine"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("key", FOLDERS, ids=name_of)
def test_folder_with_other_files_is_rejected_before_the_work(
    key: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    line = refused([*FOLDERS[key], key[1], str(tmp_path / "mine")], capsys)
    assert str(tmp_path / "mine") in line
    assert [path.read_text() for path in (tmp_path / "mine").iterdir()] == ["mine"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine"]


def test_comparison_does_not_replace_the_report_of_its_first_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "a" / "report.html", tmp_path / "comparison.html"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    assert "comparison.html: already exists" in refused(["adadf_dist.report.__main__", "a", "b"], capsys)
    line = refused(["adadf_dist.report.__main__", "a", "b", "--out", "a/report.html"], capsys)
    assert "a/report.html: already exists" in line
    assert (tmp_path / "a" / "report.html").read_text() == "mine"


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "report.html", "result.json", "dataset.json"])
def test_run_does_not_replace_files_in_a_foreign_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "slurm-17.out").write_text("")  # a folder may hold logs of launchers
    check_run_folder(folder)
    (folder / name).write_text("mine")
    with pytest.raises(UserError, match=rf"out: {folder} .*{name}.*choose another --out"):
        check_run_folder(folder)
    config = build_config([ConfigLayer("test", {"out": str(folder), "data.shards": "nowhere"})])
    with pytest.raises(UserError, match=f"out: {folder} "), open_logger(config, World(torch.device("cpu"))):
        pass
    assert sorted(path.name for path in folder.iterdir()) == sorted([name, "slurm-17.out"])
    (folder / "checkpoints").mkdir()  # of a run, perhaps copied
    if name != "dataset.json":
        check_run_folder(folder)


def test_failed_build_lists_bad_images_in_its_own_folder(tmp_path: Path) -> None:
    trees.class_folders(tmp_path / "faces", {"train": ["a", "b"] * 2})
    bad = trees.write(tmp_path / "faces" / "train" / "a" / "bad.jpg", b"broken")
    mine = trees.write(tmp_path / "out.skipped_images.csv", "mine")
    words = ("--root", tmp_path / "faces", "--validation-fraction", 0)
    with pytest.raises(UserError) as caught:
        run_build("folder", tmp_path / "out", *words)
    file = tmp_path / "out.partial" / "skipped_images.csv"
    assert str(file) in str(caught.value)
    assert "train/a/bad.jpg" in file.read_text()
    assert mine.read_text() == "mine"
    bad.unlink()
    dataset = run_build("folder", tmp_path / "out", *words)
    assert not (dataset.folder / "skipped_images.csv").exists()
    assert not file.exists()


CHECKS: dict[str, Callable[[Path, bool], None]] = {"file": check_output_path, "folder": check_output_folder}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_path_below_a_file_or_read_only_folder_is_rejected(
    tmp_path: Path, check: Callable[[Path, bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a folder"):
        check(tmp_path / "file" / "below" / "x", True)
    check(tmp_path / "new" / "folders" / "x", False)
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr("adadf_dist.files.outputs.os.access", lambda path, mode: False)
    with pytest.raises(UserError, match="cannot be written"):
        check(tmp_path / "new" / "x", True)


def test_file_appears_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / "x.txt"
    with atomic_file(path) as partial:
        partial.write_text("complete")
        assert not path.exists()
    assert path.read_text() == "complete"
    with pytest.raises(RuntimeError), atomic_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "complete"
    assert list(path.parent.iterdir()) == [path]
