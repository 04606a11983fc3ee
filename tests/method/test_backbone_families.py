"""Every backbone family can be exported, evaluated and used for prediction."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor

from adadf_dist.checkpoint.trained_model import load_trained_model
from adadf_dist.config.schema import Config
from adadf_dist.data.dataset import open_dataset
from adadf_dist.evaluate.__main__ import main as evaluate
from adadf_dist.export.__main__ import main as export
from adadf_dist.export.exported_model import load_model
from adadf_dist.method.model import DualBranch
from adadf_dist.predict.__main__ import main as predict
from tests.helpers.networks import random_network, save_checkpoint, small_config

pytest.importorskip("timm")

FAMILIES = {
    "timm:convnext_atto": 32,
    "timm:efficientnet_b0": 32,
    "timm:swin_tiny_patch4_window7_224": 64,
    "timm:vit_tiny_patch16_224": 48,
}
"""Backbone -> side in pixels."""
SLOW = ("timm:convnext_atto", "timm:efficientnet_b0", "timm:swin_tiny_patch4_window7_224")
KINDS = ("onnx", "safetensors", "pt2")


def settled_network(config: Config, num_classes: int, side: int) -> DualBranch:
    """Its BatchNorm statistics fit images; otherwise a deep network would predict the same for all images."""
    model = random_network(config, num_classes).train()
    with torch.no_grad():
        for seed in range(30):
            model(images_of(8, side, seed))
    return model.eval()


def images_of(count: int, side: int, seed: int) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backbone", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in FAMILIES])
def test_backbone_family_exports_evaluates_and_predicts(
    backbone: str, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The logits of each file; for ONNX also what `predict` gives for a dataset, against `evaluate`."""
    side, split = FAMILIES[backbone], open_dataset(faces).split("test")
    config = small_config({"model.backbone": backbone, "data.image_size": side, "data.shards": str(faces)})
    checkpoint = tmp_path / "drawn.pt"
    save_checkpoint(checkpoint, config, settled_network(config, len(split.classes), side), split.classes)
    files = {kind: tmp_path / f"model.{kind}" for kind in KINDS}
    words = ["--onnx", files["onnx"], "--safetensors", files["safetensors"], "--torch-export", files["pt2"]]
    export([str(checkpoint), *map(str, words)])

    images = images_of(3, side, 99)
    with torch.no_grad():
        wanted = load_trained_model(checkpoint).model(images).target_logits
    assert wanted.std(dim=0).max() > 1e-3  # it distinguishes images
    by_strangers = onnxruntime.InferenceSession(files["onnx"]).run(None, {"images": images.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(by_strangers), wanted, atol=1e-5, rtol=1e-4)
    for kind in ("safetensors", "pt2"):
        torch.testing.assert_close(load_model(files[kind], "cpu").logits(images), wanted, atol=1e-5, rtol=1e-4)

    evaluate([str(checkpoint), "--split", "test", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())["scores"]
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        predict([str(files["onnx"]), str(faces), "--split", "test", "--out", str(tmp_path / "rows.csv")])
    assert not ended.value.code
    with (tmp_path / "rows.csv").open(newline="") as stream:
        rows = {row["path"]: row for row in csv.DictReader(stream)}
    labels = {f"test/{key}": split.classes[label] for key, label in zip(split.keys, split.labels, strict=True)}
    assert rows.keys() == labels.keys()
    right = sum(row["prediction"] == labels[path] for path, row in rows.items()) / len(rows)
    nll = -sum(math.log(float(row[f"p_{labels[path]}"])) for path, row in rows.items()) / len(rows)
    assert found["accuracy"]["value"] == pytest.approx(right)
    assert found["calibration"]["nll"] == pytest.approx(nll, rel=1e-3)
