"""Predictions equal evaluation for every kind of model file, and are written as rows, JSON or a table."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from adadf_dist.checkpoint.trained_model import TrainedPredictor, load_trained_model
from adadf_dist.config.schema import Config
from adadf_dist.data.datamodule import open_data
from adadf_dist.data.dataset import open_dataset
from adadf_dist.distributed.world import World
from adadf_dist.export.__main__ import main as export
from adadf_dist.export.exported_model import load_model
from adadf_dist.metrics.predictions import predict_split
from adadf_dist.predict.inputs import ImageInput, file_image
from adadf_dist.predict.predictor import Predictor
from tests.helpers.networks import random_network, save_checkpoint, small_config
from tests.helpers.predictions import CLASSES, predict, read_csv, refused, shares
from tests.helpers.runs import start

CPU = torch.device("cpu")


def evaluation(checkpoint: Path, config: Config, split: str) -> np.ndarray:
    """[S, C]: what evaluation predicts for a split, through the torch loader."""
    with open_data(config, 0, 1, CPU) as data:
        chosen = {"test": data.test_split, "train": data.train_split}[split]
        network = TrainedPredictor(load_trained_model(checkpoint), CPU, "fp32")
        return predict_split(network, data.eval_batches(chosen), len(chosen), World(CPU)).target_probs


@pytest.mark.parametrize("kind", ["pt", "safetensors", "onnx", "pt2"])
def test_dataset_predictions_equal_evaluation(
    models: Path, faces: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, lines = predict(capsys, models / f"model.{kind}", faces, "--batch-size", 7, "--device", "cpu")
    wanted = evaluation(models / "model.pt", load_trained_model(models / "model.pt").config, "test")
    rows = read_csv(out)
    np.testing.assert_allclose(shares(rows), wanted, atol=1e-5)
    assert [row["prediction"] for row in rows] == [CLASSES[best] for best in wanted.argmax(axis=1)]
    np.testing.assert_allclose([float(row["confidence"]) for row in rows], wanted.max(axis=1), atol=1e-5)
    assert not lines
    assert wanted.std(axis=0).max() > 1e-3  # the network distinguishes samples, otherwise this would prove little


def test_ten_crop_predictions_equal_evaluation(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config({"data.shards": str(faces), "data.ten_crop_resize": 40, "data.num_workers": 0})
    save_checkpoint(tmp_path / "ten.pt", config, random_network(config, len(CLASSES)), CLASSES)
    wanted = evaluation(tmp_path / "ten.pt", config, "test")
    export([f"{tmp_path}/ten.pt", "--safetensors", f"{tmp_path}/ten.safetensors"])
    for name in ("ten.pt", "ten.safetensors"):
        capsys.readouterr()
        out, _ = predict(capsys, tmp_path / name, faces)
        np.testing.assert_allclose(shares(read_csv(out)), wanted, atol=1e-5)


def test_requested_split_is_predicted(models: Path, faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = predict(capsys, models / "model.pt", faces, "--split", "train")
    rows = read_csv(out)
    assert len(rows) == 64
    assert all(row["path"].startswith("train/") for row in rows)
    wanted = evaluation(models / "model.pt", load_trained_model(models / "model.pt").config, "train")
    np.testing.assert_allclose(shares(rows), wanted, atol=1e-5)


def test_json_lines_and_table_agree(model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = read_csv(predict(capsys, model, pictures, status=1)[0])
    text, _ = predict(capsys, model, pictures, "--format", "jsonl", status=1)
    objects = [json.loads(line) for line in text.splitlines()]
    head, *lines = predict(capsys, model, pictures, "--format", "table", status=1)[0].splitlines()
    assert head.split() == ["prediction", "confidence", *CLASSES, "path"]
    for row, value, line in zip(rows, objects, lines, strict=True):
        assert [value[name] or "" for name in ("path", "prediction", "error")] == [
            row[name] for name in ("path", "prediction", "error")
        ]
        if row["error"]:
            assert value["probabilities"] is None
            assert line.endswith(f"{row['path']}: {row['error']}")
        else:
            assert [f"{value['probabilities'][name]:.6f}" for name in CLASSES] == [row[f"p_{n}"] for n in CLASSES]
            assert f"{value['confidence']:.6f}" == row["confidence"]
            assert line.split()[0] == row["prediction"]
            assert line.endswith(row["path"])


def test_user_errors_are_one_line(
    models: Path, model: Path, pictures: Path, faces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    face = pictures / "a.jpg"
    assert "none of the paths is a dataset" in refused(capsys, model, face, "--split", "test")
    assert "--overwrite" in refused(capsys, model, face, "--out", pictures / "notes.txt")
    for name in ("x.onnx", "x.pt2", "x.safetensors", "x.pt"):
        (pictures / name).write_bytes(b"nothing of the kind")
        assert name in refused(capsys, pictures / name, face, "--device", "cpu")
    truncated = (models / "model.safetensors").read_bytes()[:5000]
    (pictures / "x.safetensors").write_bytes(truncated)
    assert "truncated" in refused(capsys, pictures / "x.safetensors", face)
    if not torch.cuda.is_available():
        assert "--device cuda: no GPU" in refused(capsys, model, face, "--device", "cuda")


def test_rows_are_written_to_a_file(
    model: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted, _ = predict(capsys, model, pictures, status=1)
    out, _ = predict(capsys, model, pictures, "--out", tmp_path / "rows.csv", status=1)
    assert not out
    assert (tmp_path / "rows.csv").read_text() == wanted


def test_reading_ahead_is_limited_to_a_few_batches(model: Path, pictures: Path) -> None:
    taken = []

    def endless() -> Iterator[ImageInput]:
        while True:
            taken.append(0)
            yield file_image(str(pictures / "a.jpg"))

    predictor = Predictor(load_model(model, "cpu"), batch_size=4, workers=2)
    rows = predictor.predict(endless())
    for number in range(1, 4):
        assert len(next(rows)) == 4
        assert len(taken) <= 4 * number + 2 * 4 + 2 + 2  # predicted, waiting, being decoded, and just read


def test_input_error_is_raised_after_the_rows_before_it(model: Path, pictures: Path) -> None:
    def broken() -> Iterator[ImageInput]:
        yield file_image(str(pictures / "a.jpg"))
        raise PermissionError(13, "Permission denied", "locked")

    rows = Predictor(load_model(model, "cpu"), batch_size=4, workers=2).predict(broken())
    assert [row.face.error for row in next(rows)] == [""]
    with pytest.raises(PermissionError, match="locked"):
        next(rows)


@pytest.mark.slow
def test_closed_output_pipe_ends_quietly(model: Path, faces: Path) -> None:
    process = start([sys.executable, "-m", "adadf_dist.predict", str(model), str(faces), "--batch-size", "1"])
    assert process.stdout is not None
    try:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=60) == 1
    finally:
        process.kill()
        process.wait()


def test_dataset_rows_carry_the_true_label(models: Path, faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = open_dataset(faces).split("validation")
    out, _ = predict(capsys, models / "model.safetensors", faces, "--split", "validation")
    rows = read_csv(out)
    assert [row["label"] for row in rows] == [split.classes[label] for label in split.labels]
    assert split.votes is not None
    for row, votes in zip(rows, split.votes, strict=True):
        assert [float(row[f"votes_{name}"]) for name in split.classes] == votes.tolist()
