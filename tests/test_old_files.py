"""Files of version 0.1.0 still load: datasets, configurations, runs, checkpoints, studies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from adadf_dist import train
from adadf_dist.checkpoint.trained_model import load_trained_model
from adadf_dist.config.load import build_config, flatten, load_config_file, to_dict
from adadf_dist.data.dataset import open_dataset
from adadf_dist.report.__main__ import main as report
from shards.verify import verify
from tests.old_files import FOLDER, write_checkpoint
from tests.runs import ROOT, numbers
from tune.search import main as search


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the old files; their relative paths start at the folder of the project."""
    monkeypatch.chdir(ROOT)
    return Path(shutil.copytree(FOLDER, tmp_path / "v0"))


def test_a_dataset_opens(old: Path) -> None:
    dataset = open_dataset(old / "faces")
    assert [len(dataset.split(name)) for name in ("train", "validation", "test")] == [14, 7, 7]
    assert dataset.split("train").distributions is not None
    manifest, findings = verify(old / "faces", workers=1)
    assert not findings and manifest.name == "faces"


def test_a_config_file_gives_the_values_that_it_holds(old: Path) -> None:
    path = old / "ddp" / "config.yaml"
    loaded = dict(flatten(to_dict(build_config([load_config_file(path)]))))
    for key, value in flatten(yaml.safe_load(path.read_text())):
        assert loaded[key] == value or list(loaded[key]) == value, key


@pytest.mark.parametrize("engine", ["ddp", "deepspeed"])
def test_a_run_resumes(old: Path, engine: str) -> None:
    """Under DDP, from either engine's checkpoint."""
    run = old / engine
    before = numbers(run, "epoch")
    write_checkpoint(run)
    words = ["--config", str(run / "config.yaml"), "--out", str(run), "--engine", "ddp", "--epochs", "3"]
    train.main(words)
    after = numbers(run, "epoch")
    assert [record["epoch"] for record in after] == [1, 2, 3]
    assert [
        {key: record[key] for key in old_record} for record, old_record in zip(after, before, strict=False)
    ] == before
    assert json.loads((run / "result.json").read_text())["epochs"] == 3


def test_a_trained_network_opens_with_its_weights(old: Path) -> None:
    trained = load_trained_model(write_checkpoint(old / "ddp"))
    weights = trained.model.state_dict()
    assert torch.equal(weights["extractor.conv1.weight"], torch.full((64, 3, 7, 7), 0.01))
    assert trained.preprocessing.classes[0] == "neutral"


def test_a_report_shows_the_run(old: Path) -> None:
    page = old / "report.html"
    report([str(old / "ddp"), "--out", str(page)])
    text = page.read_text()
    accuracy = json.loads((old / "ddp" / "result.json").read_text())["test"]["accuracy"]
    assert f"{100 * accuracy:.2f}" in text
    assert len(np.load(old / "ddp" / "history" / "epoch-0002.npz")["loss"]) == 14


def test_a_finished_study_is_read_again_without_training(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = flatten(json.loads((old / "study" / "study.json").read_text())["base"])
    words = [f"--{key}={json.dumps(value) if not isinstance(value, str) else value}" for key, value in base]
    words = [word for word in words if not word.startswith(("--out", "--resume"))]
    own = ["--local", "--num-trials", "1", "--num-seeds", "2", "--finalists", "1", "--scheduler", "none", "--resume"]
    before = (old / "study" / "trials.csv").read_text()
    search([*own, "--preset", "demo", *words, "--out", str(old / "study")])
    assert (old / "study" / "trials.csv").read_text() == before
    assert "28.57% on 2 seeds" in capsys.readouterr().out
