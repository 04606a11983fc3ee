"""Ten crops per sample: cropping, rows and slices of a batch, and evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from adadf_dist import train
from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.config.schema import Config
from adadf_dist.data.batch import Batch
from adadf_dist.data.datamodule import open_data
from adadf_dist.data.preprocessing import ten_crop
from adadf_dist.errors import UserError
from adadf_dist.metrics.evaluator import predict_batch
from adadf_dist.training.final_test import Result
from tests.helpers.runs import settings


@pytest.mark.parametrize(("side", "size"), [(40, 32), (256, 224), (33, 32)])
def test_crops_equal_torchvision(side: int, size: int) -> None:
    images = torch.rand(3, 3, side, side)
    theirs = torch.stack(functional.ten_crop(images, [size, size]), dim=1)
    assert torch.equal(ten_crop(images, size), theirs)


def test_batch_rows_equal_a_naive_loop() -> None:
    images = torch.rand(2, 10, 3, 4, 4)
    batch = Batch(images, torch.tensor([5, 6]), torch.tensor([70, 80]), offset=3, global_size=9)
    rows = batch.flatten_crops()
    assert (rows.offset, rows.global_size, batch.num_crops, rows.num_crops) == (30, 90, 10, 1)
    for row in range(20):
        assert torch.equal(rows.images[row], images[row // 10, row % 10])
        assert rows.labels[row] == (5, 6)[row // 10]
        assert rows.sample_ids[row] == (70, 80)[row // 10]
    assert rows.flatten_crops() is rows


class FirstPixels:
    """A network that predicts the first pixels of an image."""

    def predict(self, images: Tensor) -> Tensor:
        return images[:, :, 0, 0]


def test_sample_logits_are_the_mean_over_crops() -> None:
    images = torch.rand(4, 10, 3, 2, 2)
    batch = Batch(images, torch.zeros(4), torch.arange(4), 0, 4)
    wanted = images[..., 0, 0].numpy().mean(axis=1)
    assert np.allclose(predict_batch(FirstPixels(), batch).numpy(), wanted, atol=1e-6)


def config_for(faces: Path, out: Path) -> Config:
    values = settings(
        faces, out, data__ten_crop_resize="40", batch_size="9", augment__num_ops="1", augment__erase_prob="1"
    )
    return build_config([ConfigLayer("test", values)])


def test_rank_slices_are_of_samples(faces: Path, tmp_path: Path) -> None:
    config = config_for(faces, tmp_path)
    parts = []
    for rank, ranks in ((0, 1), (0, 2), (1, 2)):
        with open_data(config, rank, ranks, torch.device("cpu")) as data:
            parts.append(next(data.train_batches(0)).flatten_crops())
    whole, first, second = parts
    assert len(whole.images) == whole.global_size == 80  # 64 samples in 8 batches
    assert second.offset == len(first.images) == 40
    assert torch.equal(torch.cat([first.images, second.images]), whole.images)
    assert torch.equal(torch.cat([first.sample_ids, second.sample_ids]), whole.sample_ids)


def test_each_crop_is_erased(faces: Path, tmp_path: Path) -> None:
    with open_data(config_for(faces, tmp_path), 0, 1, torch.device("cpu")) as data:
        batch = next(data.train_batches(0))
    assert batch.images.shape[1:] == (10, 3, 32, 32)
    erased = (batch.images == 0).all(dim=2).flatten(2).sum(dim=2)
    assert (erased >= 0.015 * 32 * 32).all()
    assert (erased == erased[:, :1]).float().mean() > 0.9  # the same box in each


def test_run_counts_samples_not_crops(faces: Path, tmp_path: Path) -> None:
    result = train.run(config_for(faces, tmp_path / "out"))
    assert isinstance(result, Result)
    assert result.test["samples"] == 30
    history = np.load(tmp_path / "out" / "history" / "epoch-0001.npz")
    assert (history["seen"] == 1).all()
    assert history["class_counts"].sum() == pytest.approx(64)
    assert np.allclose(history["class_means"].sum(axis=1)[history["class_counts"] > 0], 1, atol=1e-6)
    assert (history["attention"] <= 1.001).all()


def test_oversized_crops_are_rejected() -> None:
    with pytest.raises(UserError, match=r"data\.ten_crop_resize is 224; allowed: 0, or above data\.image_size"):
        build_config([ConfigLayer("test", {"data.ten_crop_resize": 224})])
