"""The end of a run: each split is evaluated once per model, and predictions are stored."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from adadf_dist import train
from adadf_dist.checkpoint.manager import CheckpointManager
from adadf_dist.checkpoint.progress import TrainingProgress
from adadf_dist.checkpoint.storage import read_checkpoint
from adadf_dist.checkpoint.trained_model import TrainedPredictor, load_trained_model
from adadf_dist.config.load import ConfigLayer, build_config
from adadf_dist.data.datamodule import DataModule, open_data
from adadf_dist.distributed.world import World
from adadf_dist.method.model import Branch
from adadf_dist.metrics.evaluator import evaluate
from adadf_dist.metrics.predictions import predict_split
from adadf_dist.tracking.artifacts import load_predictions
from adadf_dist.training.final_test import Result
from tests.helpers.runs import records, settings

ALONE = World(torch.device("cpu"))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Number of images that passed through the target branch in evaluation mode, by split."""
    seen: Counter[str] = Counter()
    now: list[str] = []
    real_batches, real_features = DataModule.eval_batches, Branch.features

    def batches(self: DataModule, split, only=None) -> Iterator[object]:  # type: ignore[no-untyped-def]
        for batch in real_batches(self, split, only):
            now[:] = [split.name]
            yield batch

    def features(self: Branch, maps: torch.Tensor) -> torch.Tensor:
        if not self.training and self is targets[-1]:
            seen[now[0]] += len(maps)
        return real_features(self, maps)

    targets: list[Branch] = []
    real_init = train.build_engine

    def build(*args: object) -> object:
        engine = real_init(*args)  # type: ignore[arg-type]
        targets.append(engine.eval_model.target)  # type: ignore[attr-defined]
        return engine

    monkeypatch.setattr(DataModule, "eval_batches", batches)
    monkeypatch.setattr(Branch, "features", features)
    monkeypatch.setattr(train, "build_engine", build)
    return seen


@pytest.mark.parametrize("selected", [1, 2])
@pytest.mark.parametrize("ten_crop", [0, pytest.param(40, marks=pytest.mark.slow)])
def test_each_split_is_evaluated_once(
    selected: int,
    ten_crop: int,
    faces: Path,
    tmp_path: Path,
    passes: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real, read = TrainingProgress.finish_epoch, []

    def choose(self: TrainingProgress, accuracy: float, record: dict[str, object]) -> None:
        real(self, 1.0 if self.epoch + 1 == selected else 0.0, record)

    monkeypatch.setattr(TrainingProgress, "finish_epoch", choose)
    real_read = read_checkpoint
    monkeypatch.setattr(
        "adadf_dist.training.final_test.read_checkpoint", lambda path: read.append(path) or real_read(path)
    )
    out = tmp_path / "run"
    config = build_config([ConfigLayer("test", settings(faces, out, data__ten_crop_resize=str(ten_crop)))])
    assert isinstance(train.run(config), Result)
    last, crops = selected == 2, 10 if ten_crop else 1
    # validation of two epochs, and predictions of the selected model if it is not the last epoch's
    assert passes["validation"] == crops * 20 * (2 if last else 3)
    assert passes["test"] == crops * 30 * (1 if last else 2)
    assert len(read) == (0 if last else 1)
    said = capsys.readouterr().out
    assert said.count("test accuracy (") == (1 if last else 2)
    check_against_passes_of_their_own(out, selected)


def check_against_passes_of_their_own(out: Path, selected: int) -> None:
    """Metrics, predictions and features equal separate passes over the checkpoints, bit for bit."""
    result = json.loads((out / "result.json").read_text())
    trained = load_trained_model(out)
    assert trained.epoch == selected
    network = TrainedPredictor(trained, ALONE.device)
    with open_data(trained.config, 0, 1, ALONE.device) as data:
        for split in (data.validation_split, data.test_split):
            assert split is not None
            metrics = json.loads(json.dumps(evaluate(network, data.eval_batches(split), split, ALONE).to_dict()))
            answers = predict_split(network, data.eval_batches(split), len(split), ALONE)
            kept = load_predictions(out, split.name)
            for one, other in zip(kept.answers, answers, strict=True):
                np.testing.assert_array_equal(one, other)
            model = trained.model
            with torch.no_grad():
                rows = [
                    model.target.features(model.extractor(b.flatten_crops().images))
                    .view(len(b.sample_ids), b.num_crops, -1)
                    .mean(dim=1)
                    for b in data.eval_batches(split)
                ]
            np.testing.assert_array_equal(kept.features, torch.cat(rows).half().float().numpy())
            if split.name == "test":
                assert metrics == result["test"]
            else:
                assert metrics == records(out, "epoch")[selected - 1]["validation"]
        last = TrainedPredictor(load_trained_model(out, "last"), ALONE.device)
        assert data.test_split is not None
        tested = evaluate(last, data.test_batches(), data.test_split, ALONE).to_dict()
        assert json.loads(json.dumps(tested)) == result["final_epoch_test"]


def test_run_stopped_before_its_test_is_tested_on_resume(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluation passes after the last checkpoint are lost, and are repeated with the same results."""
    whole, stopped = (
        build_config([ConfigLayer("test", settings(faces, tmp_path / n, epochs="1"))]) for n in ("a", "b")
    )
    train.run(whole)
    saved = CheckpointManager.save

    def die(self: CheckpointManager, skippable: bool = False) -> Path:
        saved(self, skippable)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CheckpointManager, "save", die)
        train.run(stopped)
    train.run(stopped)
    first, second = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("a", "b"))
    assert first == second
    for split in ("validation", "test"):
        one, other = (load_predictions(tmp_path / name, split) for name in ("a", "b"))
        np.testing.assert_array_equal(one.answers.target_logits, other.answers.target_logits)
