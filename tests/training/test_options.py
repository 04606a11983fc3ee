"""Runs with other optimizers, networks and evaluation: resumed, evaluated, exported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from adadf_dist.checkpoint.storage import read_checkpoint
from adadf_dist.checkpoint.trained_model import load_trained_model
from adadf_dist.config.load import override
from adadf_dist.data.datamodule import open_data
from adadf_dist.data.dataset import open_dataset
from adadf_dist.export.__main__ import main as export
from adadf_dist.export.exported_model import load_model
from adadf_dist.tracking.artifacts import load_predictions
from tests.helpers.evaluations import evaluate
from tests.helpers.runs import assert_same_run, records, settings, train_here

CPU = torch.device("cpu")
MOMENTS = {"adamw": {"step", "exp_avg", "exp_avg_sq"}, "sgd": {"momentum_buffer"}}
OTHER = {"adamw": "adam", "sgd": "adamw"}


@pytest.fixture(scope="module")
def run(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a small, narrow network, evaluated with mirror images."""
    out = tmp_path_factory.mktemp("runs") / "run"
    options = {"model__stem": "small", "model__width": "0.5", "evaluation__flip_tta": "true"}
    train_here(settings(faces, out, optimizer__schedule="cosine_by_step", optimizer__warmup_steps="2", **options))
    return out


@pytest.mark.parametrize("name", [pytest.param("adamw", marks=pytest.mark.slow), "sgd"])
def test_resumed_run_equals_an_uninterrupted_run(
    name: str, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = {"optimizer__name": name, "optimizer__weight_decay": "0.01", "optimizer__lr": "0.01"}
    changed |= {"evaluation__run_test": "false", "model__width": "0.5"}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_here(settings(faces, whole, **changed))
    train_here(settings(faces, parts, epochs="1", **changed))
    train_here(settings(faces, parts, **changed))
    assert_same_run(parts, whole)
    for moments in read_checkpoint(parts / "checkpoints" / "checkpoint-0002-000000.pt")["engine"]["moments"].values():
        assert moments.keys() == MOMENTS[name]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        train_here(settings(faces, parts, **{**changed, "optimizer__name": OTHER[name]}))
    (line,) = capsys.readouterr().err.splitlines()
    assert f"optimizer.name was {name} in the checkpoint but is {OTHER[name]} now; pass --optimizer.name {name}" in line


def test_learning_rate_of_each_step_follows_the_schedule(run: Path) -> None:
    """Two epochs of four steps: two of warm-up, six of decay."""
    decay = [0.5e-3 * (1 + np.cos(np.pi * step / 6)) for step in range(6)]
    assert [record["learning_rate"] for record in records(run, "epoch")] == pytest.approx([decay[1], decay[5]])


def test_evaluation_averages_the_logits_of_image_and_mirror_image(run: Path) -> None:
    trained = load_trained_model(run)
    plain = override(trained.config, {"evaluation.flip_tta": False})
    with open_data(plain, 0, 1, CPU) as data, torch.no_grad():
        assert data.test_split is not None
        for split in (data.validation_split, data.test_split):
            batches = [batch.images for batch in data.eval_batches(split)]
            means = [(trained.model.predict(images) + trained.model.predict(images.flip(3))) / 2 for images in batches]
            kept = load_predictions(run, split.name).answers
            np.testing.assert_allclose(kept.target_logits, torch.cat(means).numpy(), rtol=1e-4, atol=1e-5)
            accuracy = float(np.mean(torch.cat(means).argmax(dim=1).numpy() == split.labels))
            if split.name == "validation":
                record = records(run, "epoch")[trained.epoch - 1]["validation"]
                assert isinstance(record, dict)
                assert record["accuracy"] == pytest.approx(accuracy)
    assert json.loads((run / "result.json").read_text())["test"]["accuracy"] == pytest.approx(accuracy)


def test_evaluate_uses_mirror_images_as_the_run_did(run: Path) -> None:
    found, without = evaluate(run), evaluate(run, "--tta", "none")
    assert (found["asked"]["tta"], without["asked"]["tta"]) == ("flip", "none")
    assert found["scores"]["confusion"] == json.loads((run / "result.json").read_text())["test"]["confusion"]
    assert found["scores"]["calibration"]["nll"] != without["scores"]["calibration"]["nll"]


@pytest.mark.parametrize("kind", [pytest.param("onnx", marks=pytest.mark.slow), "safetensors"])
def test_small_narrow_network_is_exported(run: Path, faces: Path, tmp_path: Path, kind: str) -> None:
    export([str(run), f"--{kind}", str(tmp_path / f"model.{kind}")])
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    trained, exported = load_trained_model(run), load_model(tmp_path / f"model.{kind}", "cpu")
    assert trained.model.extractor.state_dict()["conv1.weight"].shape == (32, 3, 3, 3)
    with torch.no_grad():
        torch.testing.assert_close(exported.logits(images), trained.model.predict(images), rtol=1e-4, atol=1e-5)
    assert exported.classes == open_dataset(faces).classes
    card = next(tmp_path.glob("*.md")).read_text()
    assert "metrics average the logits of image and mirror image" in card
