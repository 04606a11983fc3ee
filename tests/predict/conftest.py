"""Model files of a network with random weights, and a folder of images."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from adadf_dist.data.synthetic.faces import render_sample
from adadf_dist.export.__main__ import main as export
from tests.helpers.networks import random_network, save_checkpoint, small_config
from tests.helpers.predictions import CLASSES


@pytest.fixture(scope="module")
def models(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random network as model.pt, .safetensors, .onnx and .pt2."""
    folder = tmp_path_factory.mktemp("models")
    config = small_config({"data.shards": str(faces)})
    save_checkpoint(folder / "model.pt", config, random_network(config, len(CLASSES)), CLASSES)
    files = ["--safetensors", f"{folder}/model.safetensors", "--onnx", f"{folder}/model.onnx"]
    export([f"{folder}/model.pt", *files, "--torch-export", f"{folder}/model.pt2"])
    return folder


@pytest.fixture
def model(models: Path) -> Path:
    return models / "model.safetensors"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of four valid images, two bad ones, and a file that is no image."""
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    for number, name in enumerate(["b.png", "a.jpg", "below/c.JPEG", "d.webp"]):
        Image.fromarray(render_sample(1, number, 48).image).save(folder / name)
    (folder / "e.jpg").write_bytes(b"no picture")
    Image.new("RGB", (30, 7)).save(folder / "f.png")
    (folder / "notes.txt").write_text("no picture either")
    return folder
