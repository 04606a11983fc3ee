"""Predictions of a trained network, those that a run stores, and opening the network again."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from adadf_dist.checkpoint.storage import read_checkpoint
from adadf_dist.checkpoint.trained_model import load_trained_model
from adadf_dist.config.schema import LossConfig, RuntimeConfig
from adadf_dist.data.batch import Batch
from adadf_dist.data.dataset import open_dataset
from adadf_dist.distributed.world import World
from adadf_dist.errors import UserError
from adadf_dist.method.model import Output
from adadf_dist.metrics.predictions import (
    Predictions,
    Rows,
    check_finite,
    fuse_distributions,
    gather_outputs,
    predict_split,
)
from adadf_dist.tracking.artifacts import load_predictions, load_samples
from adadf_dist.tracking.sample_history import select_tracked_samples
from tests.helpers.runs import settings, train_here

ALONE = World(torch.device("cpu"))


@pytest.fixture(scope="module")
def run(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three epochs."""
    out = tmp_path_factory.mktemp("runs") / "run"
    train_here(settings(faces, out, epochs="3", data__label_noise_rate="0.25"))
    return out


class Echo:
    """A network whose predictions are its images' first pixels."""

    def forward_eval(self, images: Tensor) -> Output:
        rows = images[:, 0, 0, :6]
        return Output(rows[:, :2], rows[:, 2:4], rows[:, 4], rows[:, 5])


def batch_of(images: Tensor, samples: list[int]) -> Batch:
    return Batch(images, torch.zeros(len(samples), dtype=torch.int64), torch.tensor(samples), 0, len(samples))


def test_predictions_keep_the_order_of_the_split() -> None:
    images = torch.randn(5, 3, 6, 6)
    batches = [batch_of(images[[3, 0]], [3, 0]), batch_of(images[[4, 1, 2]], [4, 1, 2])]
    answers = predict_split(Echo(), batches, 5, ALONE)
    for face in range(5):
        row = images[face, 0, 0].tolist()
        assert answers.auxiliary_logits[face].tolist() == pytest.approx(row[:2])
        assert answers.target_logits[face].tolist() == pytest.approx(row[2:4])
        assert answers.attention[face] == pytest.approx((row[4] + row[5]) / 2)
        total = math.exp(row[2]) + math.exp(row[3])
        assert answers.target_probs[face].tolist() == pytest.approx(
            [math.exp(row[2]) / total, math.exp(row[3]) / total]
        )


def test_ten_crop_prediction_is_the_mean() -> None:
    images = torch.randn(2, 10, 3, 6, 6)
    answers = predict_split(Echo(), [batch_of(images, [1, 0])], 2, ALONE)
    assert answers.target_logits[1].tolist() == pytest.approx(images[0, :, 0, 0, 2:4].mean(dim=0).tolist(), abs=1e-6)


def test_nan_predictions_are_rejected() -> None:
    """The argmax of NaN would be the first class."""
    images = torch.randn(3, 3, 6, 6)
    images[1] = torch.nan
    answers = predict_split(Echo(), [batch_of(images, [0, 1, 2])], 3, ALONE)
    with pytest.raises(UserError, match=r"some\.pt: non-finite outputs for 1 of 3 samples"):
        check_finite(answers, "some.pt")
    check_finite(Predictions(*(rows[[0, 2]] for rows in answers)), "some.pt")


def test_duplicate_or_missing_samples_are_rejected() -> None:
    images = torch.randn(2, 3, 6, 6)
    for samples in ([0, 0], [0, 2]):
        with pytest.raises(RuntimeError, match="of 3 samples"):
            gather_outputs([Rows(torch.tensor(samples), images[:, 0, 0])], 3, ALONE)


def test_subset_of_samples_is_predicted() -> None:
    images = torch.randn(2, 3, 6, 6)
    rows = gather_outputs([Rows(torch.tensor([7, 2]), images[:, 0, 0])], 9, ALONE, np.array([2, 7]))
    np.testing.assert_allclose(rows, images[[1, 0], 0, 0])


@pytest.mark.parametrize("supervision", ["fused", "label", "class", "one_hot"])
def test_fused_distributions_follow_equations_11_and_12(supervision: str) -> None:
    random = np.random.default_rng(0)
    faces, classes, lowest = 11, 3, 0.2
    answers = Predictions(
        random.normal(size=(faces, classes)).astype(np.float32),
        random.normal(size=(faces, classes)).astype(np.float32),
        random.random(faces).astype(np.float32),
    )
    labels = random.integers(0, classes, faces)
    rows = torch.from_numpy(random.dirichlet(np.ones(classes), size=classes))
    loss = LossConfig(lambda_min=lowest, supervision=supervision)  # type: ignore[arg-type]
    weights, fused = fuse_distributions(answers, labels, rows, loss, batch_size=6)
    for first, end in ((0, 6), (6, 11)):
        near = [float(a) for a in answers.attention[first:end]]
        for face in range(first, end):
            w = (float(answers.attention[face]) - min(near)) / (max(near) - min(near)) * (1 - lowest) + lowest
            powers = [math.exp(v) for v in answers.auxiliary_logits[face].tolist()]
            label = [p / sum(powers) for p in powers]
            own = rows[labels[face]].tolist()
            expected = {
                "fused": [w * d + (1 - w) * p for d, p in zip(own, label, strict=True)],
                "label": label,
                "class": own,
                "one_hot": [float(c == labels[face]) for c in range(classes)],
            }[supervision]
            assert fused[face].tolist() == pytest.approx(expected, abs=1e-12)
            if supervision != "one_hot":
                assert weights[face] == pytest.approx(w, abs=1e-12)


def test_run_keeps_its_samples_and_the_selected_predictions(run: Path, faces: Path) -> None:
    split = open_dataset(faces).split("validation")
    recorded = load_predictions(run, "validation")
    assert recorded.faces.keys.tolist() == [str(key) for key in split.keys]
    assert recorded.faces.labels.tolist() == split.labels.tolist()
    correct = float((recorded.answers.predicted_labels == split.labels).mean())
    best = read_checkpoint(run / "checkpoints" / "selected.pt")["progress"]
    assert correct == pytest.approx(best["best_accuracy"])
    assert recorded.features.shape == (len(split), 512)
    trained = load_samples(run)
    changed = (trained.labels != trained.true_labels).sum()
    assert changed == round(0.25 * len(trained.labels))
    assert trained.true_labels.tolist() == open_dataset(faces).split("train").labels.tolist()


def test_trained_model_opens_with_the_same_predictions(run: Path) -> None:
    saved = read_checkpoint(run / "checkpoints" / "selected.pt")
    trained = load_trained_model(run)
    assert trained.epoch == saved["progress"]["epoch"]
    assert trained.classes == tuple(saved["preprocessing"]["classes"])
    weights = saved["engine"]["model"]
    assert all(torch.equal(value, weights[name]) for name, value in trained.model.state_dict().items())
    assert torch.equal(trained.class_distributions, saved["class_distributions"]["distributions"])
    assert load_trained_model(run, "last").epoch == 3
    assert load_trained_model(run / "checkpoints" / "selected.pt").epoch == trained.epoch


def test_invalid_run_folder_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run folder or checkpoint"):
        load_trained_model(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no checkpoint found"):
        load_trained_model(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "checkpoint-0000-000004.pt").touch()
    with pytest.raises(UserError, match="no epoch has finished yet"):
        load_trained_model(tmp_path)
    with pytest.raises(UserError, match="missing; the run has not written it yet"):
        load_predictions(tmp_path, "test")


def test_most_ambiguous_samples_are_tracked_first(faces: Path) -> None:
    split = open_dataset(faces).split("train")
    votes = np.zeros((len(split), len(split.classes)), dtype=np.float32)
    votes[:, 0] = 10
    votes[5, :2] = 5, 5
    votes[9, :2] = 7, 3
    voted = replace(split, votes=votes)
    config = RuntimeConfig(tracked_samples=(str(split.keys[3]),), num_tracked_samples=4)
    listed = select_tracked_samples(voted, config, seed=0)
    assert listed[:3] == [3, 5, 9]
    assert len(set(listed)) == 5
    assert listed == select_tracked_samples(voted, config, seed=0)
    assert listed[3:] != select_tracked_samples(voted, config, seed=1)[3:]
    assert len(select_tracked_samples(split, replace(config, tracked_samples=()), seed=0)) == 4
