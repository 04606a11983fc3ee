"""Data other than a run was trained on is detected by every command, and so are its own training samples."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from adadf_dist import train
from adadf_dist.audit.__main__ import main as audit
from adadf_dist.check.run_dir import describe_run_dir
from adadf_dist.checkpoint.storage import read_checkpoint
from adadf_dist.config.load import ConfigLayer, build_config, parse_cli
from adadf_dist.config.schema import Config
from adadf_dist.data.dataset import open_dataset
from adadf_dist.data.identity import Source
from adadf_dist.data.manifest import read_manifest
from adadf_dist.data.synthetic.dataset import build_synthetic_dataset
from adadf_dist.errors import UserError
from adadf_dist.evaluate.__main__ import main as evaluate
from adadf_dist.export.__main__ import main as export
from adadf_dist.report.__main__ import main as report
from adadf_dist.training.final_test import Result
from tests.helpers.runs import settings
from tests.helpers.studies import SPACE, make_study, put
from tune.study.study import STUDY_FILE, start

FIXED = {"epochs": "1", "runtime__precision": "fp32"}


def config_of(shards: Path, out: Path, **changed: str) -> Config:
    return build_config([ConfigLayer("test", settings(shards, out, **{**FIXED, **changed}))])


@pytest.fixture(scope="module")
def home(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/faces, and runs/one that was trained on it by its relative path."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(faces, folder / "data" / "faces")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train.run(config_of(Path("data/faces"), Path("runs/one")))
    return folder


@pytest.fixture
def copy(home: Path, tmp_path: Path) -> Path:
    """A copy of the run folder that a test may change; its dataset is unchanged."""
    return Path(shutil.copytree(home / "runs" / "one", tmp_path / "one"))


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change `dataset.json`."""
    content = json.loads((folder / "dataset.json").read_text())
    change(content)
    (folder / "dataset.json").write_text(json.dumps(content))


def other_images(manifest: dict[str, Any]) -> None:
    """Replace image bytes and keep keys and labels, as a rebuild might."""
    for split in manifest["splits"].values():
        split["shards"][0]["sha256"] = "0" * 64


def swap_splits(manifest: dict[str, Any]) -> None:
    """Assign the same photos to other splits."""
    splits = manifest["splits"]
    splits["train"], splits["validation"] = splits["validation"], splits["train"]


@pytest.fixture
def other(home: Path, tmp_path: Path) -> Path:
    """A dataset with the same keys and labels but other images."""
    folder = Path(shutil.copytree(home / "data" / "faces", tmp_path / "other" / "data" / "faces"))
    edit(folder, other_images)
    return folder


def refused(capsys: pytest.CaptureFixture[str], command: Callable[[list[str]], None], *words: object) -> str:
    with pytest.raises(SystemExit) as ended:
        command([*map(str, words)])
    output = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2
    return output


def forget_data(run: Path, shards: str) -> None:
    """Turn the checkpoints into those of an older version, which stored a relative path and no digests."""
    for path in (run / "checkpoints").glob("*.pt"):
        content = torch.load(path, weights_only=True)
        del content["data"]
        content["config"]["data"]["shards"] = shards
        path.unlink()
        torch.save(content, path)
    (run / "data.json").unlink()


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["classes"].reverse(),
        lambda m: m["splits"]["test"].update(index_sha256="1" * 64),
        lambda m: m["splits"]["test"]["shards"][0].update(sha256="1" * 64),
    ],
    ids=["classes", "index", "images"],
)
def test_digest_covers_only_the_content_of_its_split(
    faces: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    copy = Path(shutil.copytree(faces, tmp_path / "copy"))
    edit(copy, lambda m: m.update(name="another name"))
    before = read_manifest(copy).digests()
    assert before == read_manifest(faces).digests()
    edit(copy, change)
    after = read_manifest(copy).digests()
    assert after["test"] != before["test"]
    if before["train"] != after["train"]:  # class names belong to every split
        assert read_manifest(copy).classes != read_manifest(faces).classes


def test_run_is_evaluated_on_its_own_data_from_any_folder(
    home: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The current folder has another dataset under the run's relative path."""
    monkeypatch.chdir(other.parents[1])
    run = home / "runs" / "one"
    evaluate([str(run), "--split", "validation", "--json", str(tmp_path / "report.json")])
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["asked"]["dataset"] == str(home / "data" / "faces")
    epoch = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert found["scores"]["accuracy"]["value"] == epoch["validation"]["accuracy"]
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["shards"] == str(home / "data" / "faces")
    recorded = json.loads((run / "data.json").read_text())["source"]
    assert recorded == {"shards": str(home / "data" / "faces"), "digests": read_manifest(home / "data/faces").digests()}
    assert read_checkpoint(run / "checkpoints" / "selected.pt")["data"]["source"] == recorded


@pytest.mark.parametrize("name", ["evaluate", "audit", "export", pytest.param("report", marks=pytest.mark.slow)])
def test_different_data_at_the_runs_path_is_rejected(
    name: str, home: Path, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, kept = home / "data" / "faces", tmp_path / "moved"
    commands: dict[str, tuple[Callable[[list[str]], None], list[str]]] = {
        "evaluate": (evaluate, [str(copy)]),
        "audit": (audit, [str(copy), "--max-images", "1"]),
        "export": (export, [str(copy), "--safetensors", str(tmp_path / "m.safetensors")]),
        "report": (report, [str(copy), "--out", str(tmp_path / "page.html")]),
    }
    command, words = commands[name]
    force = ["--overwrite"]
    before = read_manifest(place).digests()
    place.rename(kept)
    try:
        shutil.copytree(kept, place)
        edit(place, other_images)
        output = refused(capsys, command, *words)
        split = "test" if name == "evaluate" else "train"
        now = read_manifest(place).digests()
        assert str(place) in output
        assert before[split][:12] in output
        assert now[split][:12] in output
        assert " --shards DIR" in output
        assert "--allow-other-data" in output
        command([*words, *force, "--allow-other-data"])
        said = capsys.readouterr()
        page = (tmp_path / "page.html").read_text() if name == "report" else ""
        assert "was trained on other data" in said.out + said.err + page
        command([*words, *force, "--shards", str(kept)])  # the dataset has moved
        said = capsys.readouterr()
        page = (tmp_path / "page.html").read_text() if name == "report" else ""
        assert "other data" not in said.out + said.err + page
    finally:
        shutil.rmtree(place)
        kept.rename(place)


@pytest.mark.parametrize("old", [False, True], ids=["", "older version"])
def test_training_samples_are_rejected_as_validation_split(
    old: bool, home: Path, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another split assignment, under its own name or, for a run of an older version, under the run's path."""
    swapped = Path(shutil.copytree(home / "data" / "faces", tmp_path / "swapped"))
    edit(swapped, swap_splits)
    words = [str(copy), "--split", "validation", "--shards", str(swapped)]
    if old:
        forget_data(copy, str(swapped))
        words = words[:3]
    output = refused(capsys, evaluate, *words)
    assert f"{swapped}: 64 of the 64 samples of split validation are training samples of" in output
    assert "--allow-training-samples" in output
    evaluate([*words, "--allow-training-samples", "--json", str(tmp_path / "report.json")])
    said = capsys.readouterr()
    assert "64 of these 64 samples are training samples of the run" in said.out
    assert json.loads((tmp_path / "report.json").read_text())["asked"]["training_samples"] == 64
    assert said.err.count("warning: ") == old  # of an older version: one line
    evaluate([str(copy), "--split", "test", "--shards", str(swapped)])  # the test split is unchanged
    evaluate([str(copy), "--split", "train", "--shards", str(home / "data" / "faces")])


def test_resume_accepts_a_moved_dataset_but_no_other(
    home: Path, copy: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = Path(shutil.copytree(home / "data" / "faces", tmp_path / "moved"))
    longer = config_of(other, copy, epochs="2")
    with pytest.raises(UserError, match="was trained on other data") as caught:
        train.run(longer)
    output = str(caught.value)
    assert all(text in output for text in (str(home / "data" / "faces"), str(other), "--allow-other-data"))
    with pytest.raises(UserError, match="was trained on other data"):
        describe_run_dir(longer, copy)
    assert "will resume" in describe_run_dir(replace(longer, allow_other_data=True), copy)
    assert isinstance(train.run(config_of(moved, copy, epochs="1")), Result)  # finished: its result is printed again
    capsys.readouterr()
    train.run(replace(longer, allow_other_data=True))
    assert "resumed on other data" in capsys.readouterr().out
    assert [source["shards"] for source in json.loads((copy / "data.json").read_text())["earlier"]]
    assert yaml.safe_load((copy / "config.yaml").read_text())["allow_other_data"] is False
    train.run(longer)  # the permission is needed only once


def test_run_of_an_older_version_resumes_with_one_warning(
    home: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forget_data(copy, "data/faces")
    train.run(config_of(home / "data" / "faces", copy, epochs="2"))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert "did not record a digest of the data" in line


def test_input_file_may_move_but_not_change(faces: Path, tmp_path: Path) -> None:
    key = str(open_dataset(faces).split("train").keys[0])
    first, second = tmp_path / "a" / "noise.txt", tmp_path / "b" / "list.txt"
    for path in (first, second):
        path.parent.mkdir()
        path.write_text(f"{key} 1\n")
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(first.parent)
        train.run(config_of(faces, out, data__label_noise_file="noise.txt"))
    assert yaml.safe_load((out / "config.yaml").read_text())["data"]["label_noise_file"] == str(first)
    train.run(config_of(faces, out, data__label_noise_file=str(second)))
    second.write_text(f"{key} 2\n")
    with pytest.raises(UserError, match=r"config mismatch: data\.label_noise_file"):
        train.run(config_of(faces, out, data__label_noise_file=str(second)))


def test_search_resumes_only_on_its_data(
    faces: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path / "study", SPACE)
    put(study, study.default(), [0.5])
    source, changed = (Source(str(f), read_manifest(f).digests()) for f in (faces, other))
    start(study, True, source)  # of an older version: recorded from here on
    start(study, True, replace_path(source, "/moved"))
    with pytest.raises(UserError, match=r"were trained on other data.*--allow-other-data"):
        start(study, True, changed)
    start(replace(study, base=replace(study.base, allow_other_data=True)), True, changed)
    assert "contains trials on another dataset" in capsys.readouterr().err
    start(study, True, changed)
    assert len(json.loads((study.folder / STUDY_FILE).read_text())["earlier_data"]) == 1


def replace_path(source: Source, shards: str) -> Source:
    return source._replace(shards=shards)


def test_runs_evaluated_on_other_data_are_not_compared(
    home: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "second"
    train.run(config_of(other, out, seed="1"))
    words = [str(home / "runs" / "one"), str(out), "--out", str(tmp_path / "page.html")]
    assert "not comparable" in refused(capsys, report, *words)
    report([*words, "--allow-other-data"])
    assert "was evaluated on" in (tmp_path / "page.html").read_text()


def test_other_synthetic_samples_are_other_data(faces: Path, tmp_path: Path) -> None:
    counts = {"train": 64, "validation": 20, "test": 30}
    again = build_synthetic_dataset(tmp_path / "again", counts, size=32, workers=1)
    assert again.manifest.digests() == read_manifest(faces).digests()
    drawn = build_synthetic_dataset(tmp_path / "drawn", counts, size=32, seed=1, workers=1).manifest.digests()
    assert not set(drawn.values()) & set(again.manifest.digests().values())


def test_boolean_option_needs_no_value() -> None:
    words = ["--preset", "rafdb", "--allow-other-data"]
    assert parse_cli(words).allow_other_data
    assert parse_cli([*words, "--epochs", "3"]).epochs == 3
    assert not parse_cli([*words, "false"]).allow_other_data
