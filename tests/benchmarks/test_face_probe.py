"""The linear probe of face recognition weights, on synthetic faces and random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from adadf_dist.data.dataset import open_dataset
from adadf_dist.data.preprocessing import Preprocessing
from adadf_dist.method.backbones import sequential
from adadf_dist.method.dlib_resnet import build_units
from benchmarks.__main__ import main
from benchmarks.face_probe import extract, load_extractor


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_file(sequential(build_units()).state_dict(), path)
    return path


def test_accuracy_is_that_of_the_best_regularized_softmax(weights: Path, faces: Path, tmp_path: Path) -> None:
    """Gradient descent of torch on the mean cross entropy plus l2 / 2 times the squared norm."""
    words = ["--weights", weights, "--shards", faces, "--image-size", "64", "--l2", "0.5"]
    main(["face-probe", *map(str, words), "--json", str(tmp_path / "probe.json")])
    found = json.loads((tmp_path / "probe.json").read_text())
    dataset = open_dataset(faces)
    splits = [dataset.split(name) for name in ("train", "test")]
    extractor, preprocessing = load_extractor(weights, 7, 64), Preprocessing(64, dataset.classes, "torch")
    train, test = (torch.from_numpy(np.concatenate(list(extract(extractor, s, preprocessing, 64)))) for s in splits)
    labels, truth = (torch.from_numpy(split.labels) for split in splits)
    mean, std = train.mean(dim=0), train.std(dim=0, correction=0).clamp_min(1e-6)
    linear = nn.Linear(train.shape[1], len(dataset.classes))
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = F.cross_entropy(linear((train - mean) / std), labels) + 0.25 * linear.weight.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    with torch.no_grad():
        accuracy = (linear((test - mean) / std).argmax(dim=1) == truth).double().mean().item()
    assert found["test_accuracy"] == pytest.approx(accuracy, abs=1.01 / len(truth))  # one image may be on the border
    assert (found["train_samples"], found["test_samples"], found["features"]) == (64, 30, 8704)


def test_features_do_not_depend_on_the_batch_size(weights: Path, faces: Path) -> None:
    dataset = open_dataset(faces)
    split = dataset.split("validation").subset(np.arange(5), "five")
    extractor, preprocessing = load_extractor(weights, 7, 64), Preprocessing(64, dataset.classes, "torch")
    at_once, in_parts = (np.concatenate(list(extract(extractor, split, preprocessing, size))) for size in (8, 2))
    assert at_once.shape == (5, 8704)
    np.testing.assert_allclose(in_parts, at_once, rtol=1e-4, atol=1e-5)


def test_missing_weights_are_one_line(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["face-probe", "--weights", str(tmp_path / "nowhere.pt"), "--shards", str(faces)])
    (line,) = capsys.readouterr().err.splitlines()
    assert "nowhere.pt: no such file" in line
