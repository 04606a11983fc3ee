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
from adadf_dist.config.keys import flatten
from adadf_dist.config.load import build_config, load_config_file, to_dict
from adadf_dist.data.dataset import open_dataset
from adadf_dist.report.__main__ import main as report
from adadf_dist.report.run_reader import open_run
from shards.verify import verify
from tests.helpers.old_files import FOLDER, write_checkpoint
from tests.helpers.runs import ROOT, numbers
from tune.search import main as search
from tune.study.trial import TrialStore

RENAMED_KEYS = {
    "data.cache": "data.cache_dir",
    "data.embedded_faces": "data.synthetic_samples",
    "data.workers": "data.num_workers",
    "data.prefetch": "data.prefetch_batches",
    "data.max_bad_faces": "data.max_bad_samples",
    "data.ten_crop": "data.ten_crop_resize",
    "data.label_noise": "data.label_noise_rate",
    "data.relabel": "data.relabel_file",
    "augment.operations": "augment.num_ops",
    "augment.flip": "augment.flip_prob",
    "augment.erase": "augment.erase_prob",
    "model.split": "model.shared_until",
    "loss.detach": "loss.detach_targets",
    "loss.scope": "loss.batch_scope",
    "class_distributions.sharpen": "class_distributions.sharpen_temperature",
    "optimizer.gamma": "optimizer.lr_gamma",
    "optimizer.ema": "optimizer.ema_decay",
    "optimizer.clip_norm": "optimizer.max_grad_norm",
    "optimizer.scaling_from": "optimizer.base_batch_size",
    "optimizer.scaling_warmup": "optimizer.scaling_warmup_epochs",
    "optimizer.attention_lr_factor": "optimizer.attention_lr_mult",
    "deepspeed.config": "deepspeed.config_file",
    "evaluation.test": "evaluation.run_test",
    "evaluation.report": "evaluation.write_report",
    "checkpoint.every_steps": "checkpoint.save_every_steps",
    "checkpoint.every_minutes": "checkpoint.save_every_minutes",
    "checkpoint.keep": "checkpoint.keep_last",
    "runtime.stop_every": "runtime.stop_check_steps",
    "runtime.log_every": "runtime.log_every_steps",
    "runtime.loggers": "runtime.trackers",
    "runtime.profile": "runtime.profile_steps",
    "runtime.history_samples": "runtime.tracked_samples",
    "runtime.history_faces": "runtime.num_tracked_samples",
}
RENAMED_FIELDS = {
    "class_degrees": "class_mean_target_prob",
    "replaced_faces": "num_replaced_samples",
    "deviation": "std",
    "ceiling": "bayes_accuracy",
    "vote_divergence": "votes_kl",
}
RENAMED_VALUES = {
    ("augment.policy", "published"): "paper",
    ("augment.policy", "standard"): "torchvision",
    ("class_distributions.off_diagonal", "normalised"): "normalized",
    ("class_distributions.off_diagonal", "published"): "paper",
    ("class_distributions.source", "pass"): "second_pass",
    ("evaluation.protocol", "published"): "paper",
    ("runtime.compile", "cuda-graphs"): "reduce-overhead",
}


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the old files; their relative paths start at the project folder."""
    monkeypatch.chdir(ROOT)
    return Path(shutil.copytree(FOLDER, tmp_path / "v0"))


def test_old_dataset_opens(old: Path) -> None:
    dataset = open_dataset(old / "faces")
    assert [len(dataset.split(name)) for name in ("train", "validation", "test")] == [14, 7, 7]
    assert dataset.split("train").distributions is not None
    manifest, findings = verify(old / "faces", workers=1)
    assert not findings and manifest.name == "faces"
    assert manifest.provenance["stats"] == {"skipped_images": 0, "notes": 0}


def test_old_config_file_gives_its_values(old: Path) -> None:
    path = old / "ddp" / "config.yaml"
    loaded = dict(flatten(to_dict(build_config([load_config_file(path)]))))
    for old_key, old_value in flatten(yaml.safe_load(path.read_text())):
        key = RENAMED_KEYS.get(old_key, old_key)
        value = RENAMED_VALUES.get((key, old_value), old_value) if isinstance(old_value, str) else old_value
        assert loaded[key] == value or list(loaded[key]) == value, key


@pytest.mark.parametrize("engine", ["ddp", "deepspeed"])
def test_old_run_resumes(old: Path, engine: str) -> None:
    """Under DDP, from either engine's checkpoint."""
    run = old / engine
    before = numbers(run, "epoch")
    write_checkpoint(run)
    words = ["--config", str(run / "config.yaml"), "--out", str(run), "--engine", "ddp", "--epochs", "3"]
    train.main(words)
    after = numbers(run, "epoch")
    assert [record["epoch"] for record in after] == [1, 2, 3]
    for record, old_record in zip(after, before, strict=False):
        for old_name, value in old_record.items():
            new_value = record[RENAMED_FIELDS.get(old_name, old_name)]
            if isinstance(value, dict):
                value = {RENAMED_FIELDS.get(name, name): item for name, item in value.items()}
            assert new_value == value, old_name
    assert json.loads((run / "result.json").read_text())["epochs"] == 3
    resumed = open_run(run)  # records and arrays of old and new epochs have the same names
    assert all("data_wait_fraction" in record and "waiting" not in record for record in resumed.epochs)
    if engine == "ddp":  # the other folder has no history
        assert resumed.stack_history("tracked_distributions").shape[0] == 3
    assert resumed.best["validation"]["bayes_accuracy"] > 0


def test_old_checkpoint_opens_with_its_weights(old: Path) -> None:
    trained = load_trained_model(write_checkpoint(old / "ddp"))
    weights = trained.model.state_dict()
    assert torch.equal(weights["extractor.conv1.weight"], torch.full((64, 3, 7, 7), 0.01))
    assert trained.preprocessing.classes[0] == "neutral"


def test_old_run_is_reported(old: Path) -> None:
    page = old / "report.html"
    report([str(old / "ddp"), "--out", str(page)])
    text = page.read_text()
    accuracy = json.loads((old / "ddp" / "result.json").read_text())["test"]["accuracy"]
    assert f"{100 * accuracy:.2f}" in text
    assert len(np.load(old / "ddp" / "history" / "epoch-0002.npz")["loss"]) == 14


def test_old_study_is_read_without_training(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = flatten(json.loads((old / "study" / "study.json").read_text())["base"])
    words = [f"--{key}={json.dumps(value) if not isinstance(value, str) else value}" for key, value in base]
    words = [word for word in words if not word.startswith(("--out", "--resume"))]
    own = ["--local", "--num-trials", "1", "--num-seeds", "2", "--finalists", "1", "--scheduler", "none", "--resume"]
    before = (old / "study" / "trials.csv").read_text()
    search([*own, "--preset", "demo", *words, "--out", str(old / "study")])
    assert (old / "study" / "trials.csv").read_text() == before.replace('"end"', '"status"', 1)
    assert "28.57% on 2 seeds" in capsys.readouterr().out


def test_old_pruned_trial_is_read_as_pruned(old: Path) -> None:
    store = TrialStore(old / "study" / "trials")
    path = store.path / "0001-seed0" / "trial.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "end": "halted"}))
    trial = store.get("0001-seed0")
    assert (trial.status, trial.epochs) == ("pruned", 2)
