"""Extensions in whole runs: class frequencies, votes, and exact resuming in mid-epoch."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adadf_dist import train
from adadf_dist.checkpoint.storage import read_checkpoint
from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.data.batch import Batch
from adadf_dist.data.datamodule import check_has_votes
from adadf_dist.data.dataset import Split, open_dataset
from adadf_dist.data.sampling import epoch_batches
from adadf_dist.errors import UserError
from adadf_dist.method.target_averages import MeanFused, SampleAverages
from adadf_dist.training.final_test import Result
from adadf_dist.training.target_state import TargetState, class_prior, vote_distributions
from tests.helpers.forked import train_forked
from tests.helpers.ranks import single_process_world
from tests.helpers.runs import assert_same_run, settings

ON = {
    "loss__target_adjustment": "0.5",
    "loss__min_label_prob": "0.4",
    "loss__logit_adjustment": "0.5",
    "loss__label_smoothing": "0.1",
    "optimizer__ema_decay": "0.9",
    "class_distributions__sample_momentum": "0.6",
    "class_distributions__relative_threshold": "0.9",
}


@pytest.fixture
def split(faces: Path) -> Split:
    return open_dataset(faces).split("train")


@pytest.mark.parametrize("sampler", ["all", "balanced", "oversample", "sqrt"])
def test_class_prior_has_the_frequencies_of_an_epoch(sampler: str, split: Split) -> None:
    uneven = replace(split, labels=np.repeat([0, 1, 2, 4], [40, 15, 6, 3]))  # no sample of classes 3, 5 and 6
    drawn = np.concatenate(epoch_batches(uneven.labels, sampler, 16, 0, 3))
    counts = [max(1, int((uneven.labels[drawn] == c).sum())) for c in range(7)]
    assert class_prior(uneven, sampler).tolist() == pytest.approx([n / sum(counts) for n in counts])


def test_votes_are_normalized_and_samples_without_votes_have_their_label(split: Split) -> None:
    assert split.votes is not None
    votes = np.array([[3, 1, 0, 0, 0, 0, 0], [0] * 7, [0, 0, 0, 0, 0, 0, 10]], dtype=np.float32)
    few = replace(split.subset(np.arange(3), "train"), votes=votes, labels=np.array([0, 4, 6]))
    rows = vote_distributions(few)
    assert rows[0].tolist() == [0.75, 0.25, 0, 0, 0, 0, 0]
    assert rows[1].tolist() == [0, 0, 0, 0, 1, 0, 0]
    assert rows[2].tolist() == [0, 0, 0, 0, 0, 0, 1]


def test_run_with_extensions_resumes_exactly_in_mid_epoch(faces: Path, tmp_path: Path) -> None:
    """Stopped within epoch 2, where the state of epoch 1 is in use and that of epoch 2 incomplete."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train.run(build_config([ConfigLayer("test", settings(faces, whole, **ON, evaluation__run_test="false"))]))
    config = build_config([ConfigLayer("test", settings(faces, stopped, **ON, evaluation__run_test="false"))])
    with pytest.MonkeyPatch.context() as patch:
        steps: list[int] = []
        real = train.TrainState.observe

        def observe(self: train.TrainState, *args: object) -> None:
            real(self, *args)  # type: ignore[arg-type]
            steps.append(1)

        patch.setattr(train.TrainState, "observe", observe)
        patch.setattr("adadf_dist.distributed.world.World.should_stop", lambda self: len(steps) >= 6)
        assert isinstance(train.run(config), train.Stopped)
    saved = read_checkpoint(max((stopped / "checkpoints").glob("checkpoint-*")))
    assert (saved["progress"]["epoch"], saved["progress"]["batch"]) == (1, 2)
    assert saved["mean_fused"]["pending"][-1] == 32
    assert torch.count_nonzero(saved["sample_averages"]["averages"].sum(dim=1)) == 64
    assert saved["sample_averages"]["pending"][:, -1].sum() == 32
    assert isinstance(train.run(config), Result)
    assert_same_run(stopped, whole)


def test_inputs_are_the_rows_of_a_batch() -> None:
    world = single_process_world()
    values = {"loss.target_adjustment": 2.0}
    config = build_config([ConfigLayer("test", values)])
    targets = TargetState(
        config, torch.ones(3), torch.rand(6, 3), MeanFused(3, world), SampleAverages(6, 3, 0.5, world)
    )
    assert targets.mean_fused is not None and targets.sample_averages is not None and targets.votes is not None
    targets.mean_fused.mean = torch.tensor([0.5, 0.25, 0.25])
    targets.sample_averages.averages = torch.rand(6, 3)
    images, samples, classes = torch.rand(2, 3, 4, 4), torch.tensor([4, 1]), torch.eye(3)
    rows = Batch(images, torch.tensor([0, 1]), samples, 0, 2)
    inputs = targets.inputs(classes, rows)
    assert inputs.class_distributions is classes and inputs.prior_offset is targets.prior_offset
    assert inputs.fused_offset is not None
    assert inputs.fused_offset.tolist() == pytest.approx([2 * math.log(m) for m in (0.5, 0.25, 0.25)])
    averages = targets.sample_averages.averages
    for found, every in ((inputs.sample_averages, averages), (inputs.votes, targets.votes)):
        assert found is not None
        assert found.tolist() == [every[4].tolist(), every[1].tolist()]


@pytest.mark.slow
def test_extensions_train_on_ten_crops_with_two_ranks(faces: Path, tmp_path: Path) -> None:
    crops = settings(faces, tmp_path / "crops", **ON, data__ten_crop_resize="40", epochs="2", batch_size="32")
    done = train_forked(crops, 2, timeout=180)
    assert done.returncode == 0, done.stderr
    checkpoint = read_checkpoint(max((tmp_path / "crops" / "checkpoints").glob("checkpoint-*")))
    averages = checkpoint["sample_averages"]["averages"]
    torch.testing.assert_close(averages.sum(dim=1), torch.ones(64))


def test_votes_are_refused_without_votes(split: Split, faces: Path) -> None:
    config = build_config([ConfigLayer("test", settings(faces, faces, loss__supervision="votes"))])
    check_has_votes(split, config)
    assert split.votes is not None
    for votes in (None, np.zeros_like(split.votes)):
        with pytest.raises(UserError, match=r"loss\.supervision is votes, but .* has no annotator votes; rebuild"):
            check_has_votes(replace(split, votes=votes), config)
